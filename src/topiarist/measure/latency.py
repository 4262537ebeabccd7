"""How long a call takes. Only ratios of times taken in one run, turn by turn, mean anything on a shared machine."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import timer

from topiarist.errors import InputError
from topiarist.inputs import call
from topiarist.measure.quiet import run, undisturbed

_SHORTEST_BLOCK = 0.001  # seconds: short enough to fit between interruptions, long enough for the clock
_PARTS, _MOST_BLOCKS_PER_PART = 5, 50


@dataclass(frozen=True)
class Latency:
    """The time of one call in milliseconds: median and interquartile range over blocks of runs.

    ``quiet_ms`` is the first decile: what else the machine does only ever adds time, so the shortest blocks are those
    it left alone. ``times_ms`` is one mean per block, in the order in which they were taken; ``num_runs`` how many runs
    they cover.
    """

    median_ms: float
    iqr_ms: float
    quiet_ms: float
    num_runs: int
    times_ms: tuple[float, ...] = field(repr=False)

    def speedup_over(self, baseline: Latency) -> float:
        """How many times faster than ``baseline``: the median of `speedups_over`.

        Raises:
            InputError: the two were not measured together by `compare`.

        Example:
            >>> times = [_summary(list(blocks), 1) for blocks in ((2, 2, 2, 2, 2), (4, 4, 4, 6, 9))]
            >>> times[0].speedup_over(times[1])
            2.0
        """
        return statistics.median(self.speedups_over(baseline))

    def speedups_over(self, baseline: Latency) -> list[float]:
        """Time of ``baseline`` / time of this one, for each fifth of the run: the ratio of the first deciles.

        Blocks of one fifth were taken side by side, so that a drift of the machine cancels, and the decile leaves out
        the disturbed ones.

        Raises:
            InputError: the two were not measured together by `compare`.
        """
        if len(self.times_ms) != len(baseline.times_ms):
            raise InputError("only latencies measured together by compare() have a ratio; measure both in one call")
        size = max(1, len(self.times_ms) // _PARTS)
        parts = [slice(i, i + size) for i in range(0, len(self.times_ms), size)]
        return [_first_decile(baseline.times_ms[part]) / _first_decile(self.times_ms[part]) for part in parts]


def latency(model: nn.Module, example_inputs: Any, *, num_threads: int | None = None, seconds: float = 1.0) -> Latency:
    """The time that ``model`` takes for ``example_inputs``, in evaluation mode without gradients, after warm-up.

    ``num_threads`` is torch's own number where it is ``None``; ``seconds`` is about how long to measure. On a GPU
    the clock waits for the device.

    Raises:
        TraceError: the model does not run on the example inputs.

    Example:
        >>> latency(nn.Linear(4, 4), torch.zeros(1, 4), seconds=0.01).median_ms > 0
        True
    """
    return compare({"model": (model, example_inputs)}, num_threads=num_threads, seconds=seconds)["model"]


def compare(
    models: Mapping[str, tuple[nn.Module, Any]], *, num_threads: int | None = None, seconds: float = 1.0
) -> dict[str, Latency]:
    """The times of several models, taken in turn in one run, so that what else the machine does hits all alike.

    ``models`` maps names to ``(model, example_inputs)``. Blocks last about a millisecond, or one call. Every round has
    one block of each model, in an order that rotates, so all have the same number.

    Raises:
        InputError: there is no model, or ``num_threads`` or ``seconds`` is not positive.
        TraceError: a model does not run on its example inputs.

    Example:
        >>> x = torch.zeros(1, 4)
        >>> times = compare({"a": (nn.Linear(4, 4), x), "b": (nn.Linear(4, 2), x)}, seconds=0.01)
        >>> times["b"].speedup_over(times["a"]) > 0
        True
    """
    threads = torch.get_num_threads() if num_threads is None else num_threads
    if not models or threads < 1 or not seconds > 0:
        raise InputError(f"asked for {len(models)} models on {threads} threads in {seconds} s: all must be positive")
    with ExitStack() as stack:
        for model, inputs in models.values():
            stack.enter_context(undisturbed(model))
            run(model, inputs)  # what fails, fails before any time is spent
        stack.enter_context(_threads(threads))
        once = {name: _block(model, inputs, 3) for name, (model, inputs) in models.items()}
        num_runs = {name: max(1, round(_SHORTEST_BLOCK / seconds_each)) for name, seconds_each in once.items()}
        slowest = max((num_runs[name] + 1) * once[name] for name in models)
        num_rounds = _PARTS * min(_MOST_BLOCKS_PER_PART, max(1, int(seconds / _PARTS / slowest)))
        times: dict[str, list[float]] = {name: [] for name in models}
        names = list(models)
        for i in range(num_rounds):
            first = i % len(names)
            for name in names[first:] + names[:first]:
                times[name].append(1000 * _block(*models[name], num_runs[name]))
    return {name: _summary(times[name], num_runs[name]) for name in names}


def _block(model: nn.Module, inputs: Any, num_runs: int) -> float:
    """Seconds per run, after one that is not timed; torch's clock waits for the GPU where there is one."""
    call(model, inputs)
    start = timer()
    for _ in range(num_runs):
        call(model, inputs)
    return (timer() - start) / num_runs


@contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    """With that many threads, and no garbage collection in between."""
    before, collects = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(num_threads)
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if collects:
            gc.enable()


def _first_decile(times_ms: Sequence[float]) -> float:
    return sorted(times_ms)[(len(times_ms) - 1) // 10]


def _summary(times_ms: list[float], num_runs: int) -> Latency:
    low, median, high = statistics.quantiles(times_ms, n=4, method="inclusive")
    return Latency(median, high - low, _first_decile(times_ms), num_runs * len(times_ms), tuple(times_ms))

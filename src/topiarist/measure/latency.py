"""How long a call takes. Only ratios of times taken in one run, turn by turn, mean anything on a shared machine."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import Timer

from topiarist.errors import InputError
from topiarist.inputs import call
from topiarist.measure.quiet import run, undisturbed

_FEWEST, _MOST = 5, 25  # blocks per model
_WARM_UP = 3


@dataclass(frozen=True)
class Latency:
    """The time of one call in milliseconds: median and interquartile range over blocks of runs.

    ``times_ms`` is one mean per block, in the order in which they were taken; ``num_runs`` how many runs they cover.
    """

    median_ms: float
    iqr_ms: float
    num_runs: int
    times_ms: tuple[float, ...] = field(repr=False)

    def speedup_over(self, baseline: Latency) -> float:
        """How many times faster than ``baseline``: the median ratio of blocks that were taken side by side.

        Raises:
            InputError: the two were not measured together by `compare`.

        Example:
            >>> Latency(2.0, 0.0, 2, (2.0, 2.0)).speedup_over(Latency(5.0, 2.0, 2, (4.0, 6.0)))
            2.5
        """
        return statistics.median(self.ratios_over(baseline))

    def ratios_over(self, baseline: Latency) -> list[float]:
        """Time of ``baseline`` / time of this one, block by block.

        Raises:
            InputError: the two were not measured together by `compare`.
        """
        if len(self.times_ms) != len(baseline.times_ms):
            raise InputError("only latencies measured together by compare() have a ratio; measure both in one call")
        return [theirs / ours for ours, theirs in zip(self.times_ms, baseline.times_ms, strict=True)]


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

    ``models`` maps names to ``(model, example_inputs)``. Every block runs each model some times, in an order that
    rotates; all have the same number of blocks.

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
        timers = {name: _timer(model, inputs, threads) for name, (model, inputs) in models.items()}
        once = {name: timer.timeit(_WARM_UP).mean for name, timer in timers.items()}
        num_blocks = min(_MOST, max(_FEWEST, int(seconds / max(once.values()))))
        runs = {name: max(1, round(seconds / num_blocks / once[name])) for name in timers}
        times: dict[str, list[float]] = {name: [] for name in timers}
        names = list(timers)
        for block in range(num_blocks):
            first = block % len(names)
            for name in names[first:] + names[:first]:
                times[name].append(1000 * timers[name].timeit(runs[name]).mean)
    return {name: _summary(times[name], runs[name]) for name in names}


def _timer(model: nn.Module, inputs: Any, num_threads: int) -> Timer:
    return Timer(
        "call(model, inputs)", globals={"call": call, "model": model, "inputs": inputs}, num_threads=num_threads
    )


def _summary(times_ms: list[float], num_runs: int) -> Latency:
    low, _, high = statistics.quantiles(times_ms, n=4, method="inclusive")
    return Latency(statistics.median(times_ms), high - low, num_runs * len(times_ms), tuple(times_ms))

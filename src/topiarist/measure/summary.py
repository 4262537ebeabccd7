"""`measure`: everything that can be counted or timed about a model, and what to think of its speed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer

from topiarist.asked import require_module
from topiarist.errors import InputError
from topiarist.measure.latency import Latency, compare
from topiarist.measure.macs import macs
from topiarist.measure.memory import peak_activation_bytes
from topiarist.measure.params import num_nonzero, num_params
from topiarist.measure.size import bytes_in_memory, bytes_on_disk


@dataclass(frozen=True)
class Measurement:
    """What `measure` found. What was not measured is ``None``.

    ``sparsity`` is the fraction of zeros among all parameters. ``macs`` covers the whole batch of the example inputs;
    ``nonzero_macs`` leaves out products with a weight that is zero. ``num_operators`` is how many operators torch
    executes in one call, ``call_cost_ms`` the least that calling so many costs. ``bytes_on_disk`` is ``None`` for a
    model that `topiarist.save` refuses. ``latency_ms`` is a median and ``quiet_latency_ms`` the first decile, which is
    what the machine does when it does nothing else. ``baseline`` is the same for the model compared with, and
    ``speedups`` the baseline's quiet time / the own one, for each fifth of a run in which the two took turns.
    """

    num_params: int
    num_nonzero: int
    sparsity: float
    macs: int
    nonzero_macs: int
    bytes_in_memory: int
    bytes_on_disk: int | None
    peak_activation_bytes: int
    num_operators: int
    batch_size: int | None
    num_threads: int
    device: str
    latency_ms: float | None = None
    latency_iqr_ms: float | None = None
    quiet_latency_ms: float | None = None
    call_cost_ms: float | None = None
    baseline_name: str | None = None
    baseline: Measurement | None = None
    speedups: tuple[float, ...] | None = None

    @property
    def compression(self) -> float | None:
        """Parameters of the baseline / parameters of this model that are not zero."""
        return None if self.baseline is None else self.baseline.num_params / max(1, self.num_nonzero)

    @property
    def theoretical_speedup(self) -> float | None:
        """MACs of the baseline / MACs of this model, zeros included: what dense kernels have to do."""
        return None if self.baseline is None else self.baseline.macs / max(1, self.macs)

    @property
    def theoretical_nonzero_speedup(self) -> float | None:
        """MACs of the baseline / MACs of this model whose weight is not zero: reached only if zeros cost nothing."""
        return None if self.baseline is None else self.baseline.macs / max(1, self.nonzero_macs)

    @property
    def measured_speedup(self) -> float | None:
        """Time of the baseline / time of this model, both taken in turn in one run: the median of ``speedups``."""
        return None if self.speedups is None else statistics.median(self.speedups)

    def verdict(self) -> str:
        """What to think of the speed: theoretical, measured, against what, and why the two differ."""
        where = f"at batch {self.batch_size} on {self.num_threads} thread{'s' * (self.num_threads > 1)}"
        if self.device != "cpu":
            where = f"at batch {self.batch_size} on {self.device}"
        zeros = _about_zeros(self)
        if self.baseline is None or self.theoretical_speedup is None:
            timed = "not timed" if self.latency_ms is None else f"{self.latency_ms:.3g} ms {where}"
            return f"{self.macs:,} MACs, {timed}; compared with nothing.{zeros}"
        theoretical = f"{self.theoretical_speedup:.2f}× theoretical"
        if self.speedups is None:
            return f"{theoretical} against {self.baseline_name}; not timed.{zeros}"
        measured = f"{self.measured_speedup:.2f}× measured against {self.baseline_name} {where}"
        return f"{theoretical}, {measured}, {_why(self, self.baseline, self.speedups)}.{zeros}"


def measure(
    model: nn.Module,
    example_inputs: Any,
    *,
    latency: bool = True,
    baseline: nn.Module | None = None,
    baseline_name: str = "dense",
    num_threads: int | None = None,
    seconds: float = 1.0,
) -> Measurement:
    """Count and time ``model`` on ``example_inputs``, in evaluation mode; the model is left exactly as it was.

    With ``baseline``, both are timed in turn in one run, and the result carries the ratios. ``baseline_name`` says what
    it is; "eager" or "compiled" is put before it. ``latency=False`` only counts. ``num_threads`` and ``seconds`` are
    those of `topiarist.measure.compare`.

    Raises:
        TraceError: the model does not run on the example inputs.

    Example:
        >>> found = measure(nn.Linear(8, 2), torch.zeros(1, 8), baseline=nn.Linear(8, 4), latency=False)
        >>> found.num_params, found.macs, found.theoretical_speedup
        (18, 16, 2.0)
        >>> found.verdict()
        '2.00× theoretical against eager dense; not timed.'
    """
    threads = torch.get_num_threads() if num_threads is None else num_threads
    require_module(model)
    models = {"baseline": baseline, "model": model} if baseline is not None else {"model": model}
    found = {name: _counted(m, example_inputs, threads) for name, m in models.items()}
    if latency:
        rivals = {name: (m, example_inputs) for name, m in models.items()}
        times = compare(rivals, num_threads=threads, seconds=seconds)
        found = {name: _timed(found[name], times[name]) for name in found}
    if baseline is None:
        return found["model"]
    kind = "compiled" if hasattr(baseline, "_orig_mod") else "eager"
    compared = replace(found["model"], baseline=found["baseline"], baseline_name=f"{kind} {baseline_name}")
    if not latency:
        return compared
    return replace(compared, speedups=tuple(times["model"].speedups_over(times["baseline"])))


def _counted(model: nn.Module, example_inputs: Any, num_threads: int) -> Measurement:
    count = macs(model, example_inputs)
    params, nonzero = num_params(model), num_nonzero(model)
    tensors = [value for value in tree_leaves(example_inputs) if isinstance(value, Tensor) and value.ndim]
    return Measurement(
        num_params=params,
        num_nonzero=nonzero,
        sparsity=1 - nonzero / params if params else 0.0,
        macs=count.total,
        nonzero_macs=count.nonzero,
        bytes_in_memory=bytes_in_memory(model),
        bytes_on_disk=_bytes_on_disk(model),
        peak_activation_bytes=peak_activation_bytes(model, example_inputs),
        num_operators=count.num_operators,
        batch_size=len(tensors[0]) if tensors else None,
        num_threads=num_threads,
        device=next((t.device.type for t in (*model.parameters(), *model.buffers())), "cpu"),
    )


def _timed(found: Measurement, times: Latency) -> Measurement:
    one = torch.zeros(1, device=found.device)
    trivial = Timer("torch.relu(one)", globals={"one": one, "torch": torch})
    return replace(
        found,
        latency_ms=times.median_ms,
        latency_iqr_ms=times.iqr_ms,
        quiet_latency_ms=times.quiet_ms,
        call_cost_ms=1000 * min(trivial.timeit(50).mean for _ in range(20)) * found.num_operators,
    )


def _bytes_on_disk(model: nn.Module) -> int | None:
    try:
        return bytes_on_disk(getattr(model, "_orig_mod", model))
    except InputError:
        return None


def _about_zeros(found: Measurement) -> str:
    if found.nonzero_macs > 0.95 * found.macs:
        return ""
    free = found.theoretical_nonzero_speedup or found.macs / max(1, found.nonzero_macs)
    return (
        f" If zeros cost nothing it would be {free:.2f}×, but dense kernels multiply zeros like any other number: "
        "a mask alone gives no speed, only shrinking does."
    )


def _why(found: Measurement, baseline: Measurement, speedups: Sequence[float]) -> str:
    """The reason why the measured speed-up is what it is, from counts and times alone."""
    theoretical, measured = baseline.macs / max(1, found.macs), statistics.median(speedups)
    if max(speedups) > 1.5 * min(speedups):
        spread = f"{min(speedups):.2f} to {max(speedups):.2f}"
        return f"as far as the clock can tell: it was disturbed ({spread} in one run), measure again on a quiet machine"
    if 0.9 * theoretical <= measured <= 1.1 * theoretical:
        same = 0.95 <= theoretical <= 1.05
        return "because it does the same multiplications" if same else "because its time follows its MACs"
    own, theirs = (m.macs / (m.quiet_latency_ms or 1) / 1e6 for m in (found, baseline))
    rate = f"because what remains runs at {own:.3g} GMAC/s against {theirs:.3g}"
    if measured > theoretical:
        fewer = found.num_operators < baseline.num_operators
        return f"{rate}: {'fewer operators are called' if fewer else 'smaller tensors move less memory'}"
    share = (found.call_cost_ms or 0) / (found.quiet_latency_ms or 1)
    calls = f"calling its {found.num_operators} operators takes at least {share:.2f} of its time"
    reason = "narrower layers fill the processor less"
    return f"{rate}: {reason}, and {calls} whatever their size" if share > 0.05 else f"{rate}: {reason}"

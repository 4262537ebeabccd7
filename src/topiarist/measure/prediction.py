"""The latency of a model at any widths, from measured times of its parts at a few.

A part is timed at every combination of a few numbers of the units that change it, and interpolated between them. What
parts do not say, calls, sums, and what a compiler fuses, is a straight line: latency = a + b · Σ parts, through whole
models that are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from topiarist.measure.executors import Clock, Executable, in_turn, prepare, quiet, ratio, with_batch
from topiarist.measure.interpolate import Point, interpolate
from topiarist.measure.parts import Part, parts_of
from topiarist.measure.table import LatencyTable, where

NUM_WIDTHS = 5  # of each axis; a prime, so that the designs below meet every pair of widths
_ROUNDS = 5
_ROUNDS_OF_WHOLE = 15
_LEVELS_OF_WHOLE = (1.0, 0.6, 0.0)  # where on the way from the fewest units to all, whole models are timed


@dataclass(frozen=True, eq=False)
class Axis:
    """One set of units: how many there are, and how many stay at least."""

    num: int
    minimum: int

    def widths(self) -> list[int]:
        """The numbers of units to measure at, ascending: quarters of all, and the fewest.

        Example:
            >>> Axis(64, 1).widths()
            [1, 16, 32, 48, 64]
        """
        least = max(1, self.minimum)
        return sorted({max(least, round(self.num * i / (NUM_WIDTHS - 1))) for i in range(NUM_WIDTHS)})


@dataclass(frozen=True, eq=False)
class Bench:
    """Where models are timed: inputs of the right size, an executor and a clock."""

    inputs: Any
    device: torch.device
    executor: str
    clock: Clock

    @classmethod
    def of(cls, inputs: Any, device: torch.device, batch: int | None, executor: str, clock: Clock) -> Bench:
        """The bench for ``batch`` examples like those of ``inputs``."""
        moved = tree_map_only(torch.Tensor, lambda t: t.to(device), with_batch(inputs, batch))
        return cls(moved, device, executor, clock)

    @property
    def batch(self) -> int | None:
        """How many examples a call has."""
        tensors = [t for t in tree_leaves(self.inputs) if isinstance(t, torch.Tensor) and t.ndim]
        return len(tensors[0]) if tensors else None

    def ready(self, model: nn.Module) -> Executable:
        """The model, which the bench may keep, made ready."""
        return prepare(model.to(self.device), self.inputs, self.executor)

    def part(self, part: Part) -> Executable:
        """A part, made ready on numbers of no meaning."""
        module, args, kwargs = part.with_data(self.device)
        return prepare(_Called(module, kwargs) if kwargs else module, args, self.executor)

    def times(self, models: Mapping[str, Executable], rounds: int = _ROUNDS_OF_WHOLE) -> dict[str, list[float]]:
        """Milliseconds of whole models, taken in turn."""
        return in_turn(models, self.clock, rounds)


class _Called(nn.Module):
    """A module with some of its arguments given."""

    def __init__(self, module: nn.Module, kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.module, self.kwargs = module, dict(kwargs)

    def forward(self, *args: Any) -> Any:
        return self.module(*args, **self.kwargs)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicts the latency of a model from how many of its units stay.

    ``parts`` maps each part to the sets of units that change it and its times by their numbers; ``dense_ms`` is what
    the whole model takes, ``dense`` the whole model made ready, to be timed beside others.
    """

    axes: Mapping[str, Axis]
    parts: Mapping[str, tuple[tuple[str, ...], Mapping[Point, float]]]
    constant: float
    factor: float
    dense_ms: float
    dense: Executable
    bench: Bench

    def __call__(self, kept: Mapping[str, int]) -> float:
        """The milliseconds that are expected where so many units stay; sets not named are whole."""
        width = {name: kept.get(name, axis.num) for name, axis in self.axes.items()}
        return self.constant + self.factor * _sum_of_parts(self.parts, width)

    def __str__(self) -> str:
        where = f"on {self.bench.device}, {self.bench.executor}, batch {self.bench.batch}"
        return f"beside {self.dense_ms:.4g} of the whole model {where}"

    def measured(self, model: nn.Module) -> float:
        """The milliseconds of ``model``, which may be kept, timed in turn with the whole model."""
        times = self.bench.times({"dense": self.dense, "model": self.bench.ready(model)})
        return self.dense_ms * ratio(times["model"], times["dense"])

    def scaled(self, dense_ms: float) -> Prediction:
        """The same where the whole model takes ``dense_ms``, as it did at another time."""
        by = dense_ms / self.dense_ms
        return replace(self, constant=by * self.constant, factor=by * self.factor, dense_ms=dense_ms)

    @classmethod
    def of(
        cls,
        cut: Callable[[Mapping[str, int]], nn.Module],
        axes: Mapping[str, Axis],
        bench: Bench,
        path: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Prediction:
        """Measure what is needed.

        Args:
            cut: a new model with so many units left, by name; sets not named are whole.
            axes: the sets of units, by name.
            path: a file that keeps the times; an interrupted measurement goes on from it.
            progress: called with the number of models looked at and the most there can be, and then with the number of
                times taken and of all.
        """
        table = LatencyTable.open(path, where(bench.device, bench.executor))
        seen = _Looks(cut, bench.inputs, len(axes) + NUM_WIDTHS**2, progress)
        touched = _touched(seen, axes)
        points, cells = _designed(seen, axes, touched)
        make = {key: lambda part=part: bench.part(part) for key, part in cells.items()}
        table.complete(make, bench.clock, _ROUNDS, path, progress)
        parts = {
            name: (touched[name], {point: table[key] for point, key in keys.items()}) for name, keys in points.items()
        }
        levels = [_at_level(axes, level) for level in _LEVELS_OF_WHOLE]
        ready = {str(i): bench.ready(cut(kept)) for i, kept in enumerate(levels)}
        whole = [quiet(times) for times in bench.times(ready).values()]
        constant, factor = _line([_sum_of_parts(parts, kept) for kept in levels], whole)
        return cls(axes, parts, constant, factor, whole[0], ready["0"], bench)


def _sum_of_parts(
    parts: Mapping[str, tuple[tuple[str, ...], Mapping[Point, float]]], width: Mapping[str, int]
) -> float:
    return sum(interpolate(times, [width[name] for name in names]) for names, times in parts.values())


def _at_level(axes: Mapping[str, Axis], level: float) -> dict[str, int]:
    return {n: max(1, round(axis.minimum + level * (axis.num - axis.minimum))) for n, axis in axes.items()}


@dataclass
class _Looks:
    """Makes models of given widths and returns their parts."""

    cut: Callable[[Mapping[str, int]], nn.Module]
    inputs: Any
    most: int
    progress: Callable[[int, int], None] | None
    done: int = 0

    def __call__(self, kept: Mapping[str, int]) -> dict[str, Part]:
        found = parts_of(self.cut(kept), self.inputs)
        self.done += 1
        if self.progress is not None:
            self.progress(min(self.done, self.most), self.most)
        return found


def _touched(look: _Looks, axes: Mapping[str, Axis]) -> dict[str, tuple[str, ...]]:
    """Per part the sets of units that change it: those of which fewer make another part of it."""
    whole = look({})
    touched: dict[str, list[str]] = {name: [] for name in whole}
    for axis_name, axis in axes.items():
        widths = axis.widths()
        fewer = look({axis_name: widths[0]}) if len(widths) > 1 else whole
        for name, part in whole.items():
            if name not in fewer or fewer[name].key != part.key:
                touched[name].append(axis_name)
    return {name: tuple(names) for name, names in touched.items()}


def _designed(
    look: _Looks, axes: Mapping[str, Axis], touched: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, dict[Point, str]], dict[str, Part]]:
    """Per part the points to measure at, each with the key of what is run there; and the parts by key."""
    points: dict[str, dict[Point, str]] = {name: {} for name in touched}
    cells: dict[str, Part] = {}
    for kept in _designs(axes, touched):
        missing = [n for n, names in touched.items() if tuple(kept[each] for each in names) not in points[n]]
        found = look(kept) if missing else {}
        for name in missing:
            if name in found:
                points[name][tuple(kept[each] for each in touched[name])] = found[name].key
                cells.setdefault(found[name].key, found[name])
    return points, cells


def _designs(axes: Mapping[str, Axis], touched: Mapping[str, tuple[str, ...]]) -> Iterator[dict[str, int]]:
    """Widths of all axes at once, such that two axes that change one part have every pair of their widths somewhere.

    An orthogonal array (Bose 1938): design (i, j) gives an axis of colour c its width number i + c · j modulo a prime,
    and axes that meet have different colours.
    """
    colour = _colours(list(axes), touched)
    widths = {name: axis.widths() for name, axis in axes.items()}
    for i, j in product(range(NUM_WIDTHS), repeat=2):
        yield {n: each[-1 - (i + colour[n] * j) % NUM_WIDTHS % len(each)] for n, each in widths.items()}


def _colours(names: Sequence[str], touched: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Numbers below `NUM_WIDTHS` that differ between axes that change one part, as far as they go round."""
    meets: dict[str, set[str]] = {name: set() for name in names}
    for together in touched.values():
        for name in together:
            meets[name].update(together)
    colour: dict[str, int] = {}
    for name in names:
        taken = {colour[other] for other in meets[name] if other in colour}
        colour[name] = next((c for c in range(NUM_WIDTHS) if c not in taken), len(colour) % NUM_WIDTHS)
    return colour


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Constant and factor of the least squares line through the points; a line that falls is none, nor one below 0."""
    spread = float(np.ptp(x))
    factor, constant = np.polyfit(x, y, 1) if spread > 0 else (0.0, y[0])
    if factor <= 0 or constant < 0:
        return 0.0, y[0] / x[0] if x[0] > 0 else 0.0
    return float(constant), float(factor)

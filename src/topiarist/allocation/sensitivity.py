"""Sensitivity: prune one layer at a time, look at the loss, and let every layer lose as much as the others."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from topiarist.allocation.base import Candidates, check_level, share
from topiarist.errors import FormatError, InputError, nearest
from topiarist.stats.preserve import preserved

FORMAT = "topiarist-sensitivity"
VERSION = 1
GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Apply = Callable[[Mapping[str, Tensor]], AbstractContextManager[Any]]
Evaluate = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class Cell:
    """What the network does with the fraction ``ratio`` of one layer's units removed and all else whole."""

    layer: str
    ratio: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class SensitivityTable:
    """Loss and accuracy for each layer (units' name) and ratio, and those of the whole network.

    ``of`` is a digest of the scores that the layers were pruned by, so that a table is not resumed for others.

    Example:
        >>> table = SensitivityTable(loss=0.1, accuracy=0.9, cells=(Cell("fc", 0.5, 0.3, 0.8),))
        >>> SensitivityTable.from_json(table.to_json()) == table
        True
        >>> table.curve("fc")
        ((0.0, 0.5), (0.1, 0.3))
    """

    loss: float
    accuracy: float
    cells: tuple[Cell, ...] = ()
    of: str = ""

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers, in the order of the analysis."""
        return tuple(dict.fromkeys(cell.layer for cell in self.cells))

    @property
    def ratios(self) -> tuple[float, ...]:
        """All ratios that occur, ascending."""
        return tuple(sorted({cell.ratio for cell in self.cells}))

    def curve(self, layer: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The ratios of one layer, ascending from 0, and the losses there."""
        points = sorted((cell.ratio, cell.loss) for cell in self.cells if cell.layer == layer)
        return (0.0, *(r for r, _ in points)), (self.loss, *(loss for _, loss in points))

    def to_json(self) -> str:
        """The table as JSON text; `from_json` reads it back to an equal table."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> SensitivityTable:
        """Read a table back from `to_json`.

        Raises:
            FormatError: the text is not a table, is of another version, or is damaged.
        """
        try:
            raw = json.loads(text)
            if raw.get("format") != FORMAT or raw.get("version") != VERSION:
                raise FormatError(
                    f"not a sensitivity table of version {VERSION}: "
                    f"format {raw.get('format')!r}, version {raw.get('version')!r}"
                )
            cells = tuple(
                Cell(str(c["layer"]), float(c["ratio"]), float(c["loss"]), float(c["accuracy"])) for c in raw["cells"]
            )
            return cls(float(raw["loss"]), float(raw["accuracy"]), cells, str(raw["of"]))
        except FormatError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"damaged sensitivity table: {error}") from error


def analyse(
    model: nn.Module,
    candidates: Candidates,
    apply: Apply,
    evaluate: Evaluate,
    grid: Sequence[float] = GRID,
    path: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SensitivityTable:
    """Prune one set of units at a time over a grid of ratios, without training, and evaluate (Li et al. 2017).

    Each cell removes the ⌊ratio · n_l + ½⌋ lowest scores of one layer, keeping its minimum; units gone already stay
    gone throughout, in the baseline too. The model is afterwards as it was, also after an error: weights are put back
    by ``apply``, flags, buffers, ``.grad`` and random states here, after every cell.

    Args:
        apply: a context manager that removes the given units (bool per units' name) from the model while it is open.
        evaluate: maps the model to ``{"loss": …, "accuracy": …}``.
        grid: ratios in (0, 1].
        path: a file that the table is written to after every cell, all at once, and read from at the start: cells
            that it has are not evaluated again.
        progress: called with the number of cells done and of all cells.

    Raises:
        InputError: the grid is empty or out of range, the evaluation is not two finite numbers, or the file at
            ``path`` belongs to other scores.
        FormatError: the file at ``path`` is not a table.
    """
    grid = sorted(set(grid))
    if not grid or not 0 < grid[0] <= grid[-1] <= 1:
        raise InputError(f"the grid of a sensitivity analysis holds ratios in (0, 1], got {grid}")
    todo = [(units, ratio) for units in candidates.units for ratio in grid]
    table = _begin(candidates, path)
    if table is None:
        with preserved(model), apply(dict(candidates.gone)):
            loss, accuracy = _evaluated(evaluate, model, "the network")
        table = SensitivityTable(loss, accuracy, of=_digest(candidates))
        _write(table, path)
    done = {(cell.layer, cell.ratio) for cell in table.cells}
    for number, (units, ratio) in enumerate(todo, start=1):
        if (units.name, ratio) not in done:
            removed = {**candidates.gone, units.name: candidates.lowest(units, share(ratio, units.num))}
            with preserved(model), apply(removed):
                loss, accuracy = _evaluated(evaluate, model, f"{units.name!r} at {ratio}")
            table = replace(table, cells=(*table.cells, Cell(units.name, ratio, loss, accuracy)))
            _write(table, path)
        if progress is not None:
            progress(number, len(todo))
    return table


@dataclass(frozen=True)
class Sensitivity:
    """Let every layer lose the same: r_l(δ) is the ratio at which pruning layer l alone raises the loss by δ.

    Each layer's loss is made monotone in the ratio (its running maximum) and interpolated linearly between the grid's
    ratios, from no rise at 0; the common δ is the one at which the ratios make up ``level`` of all units. Where
    curves are flat and δ alone does not decide, the layers that jump there move together. Beyond the last ratios of
    the grid all layers go on to 1 together. Within a layer the lowest scores go.

    Raises:
        InputError: when called with units that the table has no row for.

    Example:
        >>> from topiarist.plan import Units
        >>> table = SensitivityTable(0.0, 1.0, (Cell("a", 1.0, 1.0, 0.5), Cell("b", 1.0, 3.0, 0.1)))
        >>> candidates = Candidates((Units("a", 6, ()), Units("b", 6, ())), {k: torch.arange(6.0) for k in "ab"})
        >>> {k: int(v.sum()) for k, v in Sensitivity(table)(candidates, 4 / 12).items()}
        {'a': 3, 'b': 1}
    """

    table: SensitivityTable
    needs_budget: ClassVar[bool] = True

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        check_level(level)
        ratios = self.ratios_at(level, {units.name: units.num for units in candidates.units})
        return {u.name: candidates.lowest(u, share(ratios[u.name], u.num)) for u in candidates.units}

    def ratios_at(self, level: float, nums: Mapping[str, int]) -> dict[str, float]:
        """The ratio of each layer at which together the fraction ``level`` of all units goes; ``nums`` counts units."""
        for name in nums:
            if name not in self.table.layers:
                raise InputError(f"the sensitivity table has no row for {name!r} ({nearest(name, self.table.layers)})")
        path = _equal_loss_path([self._rise(name) for name in nums])
        sizes = np.array([nums[name] for name in nums], dtype=np.float64)
        together = path @ sizes
        place = np.interp(level * sizes.sum(), together, np.arange(len(together), dtype=np.float64))
        before = min(int(place), len(path) - 2)
        point = path[before] + (place - before) * (path[before + 1] - path[before])
        return dict(zip(nums, point.tolist(), strict=True))

    def _rise(self, name: str) -> tuple[Array, Array]:
        """The ratios of a layer and the monotone rise of the loss there."""
        ratios, losses = self.table.curve(name)
        rise = np.maximum.accumulate(np.maximum(np.array(losses) - self.table.loss, 0.0))
        return np.array(ratios), rise


def _equal_loss_path(curves: Sequence[tuple[Array, Array]]) -> Array:
    """The polyline (points, layers) that the ratios follow as δ grows from 0, ending at 1 everywhere.

    Between the rises that occur in any curve all ratios are linear in δ; at a rise where a curve is flat its ratio
    jumps, which gives two points for one δ.
    """
    points = [np.zeros(len(curves))]
    for delta in np.unique(np.concatenate([rise for _, rise in curves])):
        points.append(np.array([_ratio(*curve, delta, "left") for curve in curves]))
        points.append(np.array([_ratio(*curve, delta, "right") for curve in curves]))
    points.append(np.ones(len(curves)))
    return np.maximum.accumulate(np.stack(points))


def _ratio(ratios: Array, rise: Array, delta: float, side: Literal["left", "right"]) -> float:
    """The lowest ("left") or highest ("right") ratio at which the rise of the loss is ``delta``."""
    place = int(np.searchsorted(rise, delta, side))
    if place in (0, len(rise)):
        return float(ratios[min(place, len(rise) - 1)])
    part = (delta - rise[place - 1]) / (rise[place] - rise[place - 1])
    return float(ratios[place - 1] + part * (ratios[place] - ratios[place - 1]))


def _evaluated(evaluate: Evaluate, model: nn.Module, what: str) -> tuple[float, float]:
    found = evaluate(model)
    keys = ("loss", "accuracy")
    values = [float(found[key]) for key in keys if key in found] if isinstance(found, Mapping) else []
    if len(values) < len(keys) or not all(map(math.isfinite, values)):
        raise InputError(f"evaluate must return finite 'loss' and 'accuracy', for {what} it returned {found!r}")
    return values[0], values[1]


def _begin(candidates: Candidates, path: str | Path | None) -> SensitivityTable | None:
    if path is None or not Path(path).exists():
        return None
    table = SensitivityTable.from_json(Path(path).read_text())
    if table.of != _digest(candidates):
        raise InputError(f"{path} holds a sensitivity table of other scores; name another file, or delete it")
    return table


def _write(table: SensitivityTable, path: str | Path | None) -> None:
    if path is None:
        return
    beside = Path(f"{path}.tmp")
    beside.write_text(table.to_json())
    os.replace(beside, path)


def _digest(candidates: Candidates) -> str:
    """SHA-256 over names, scores and what is gone, in hexadecimal."""
    digest = hashlib.sha256()
    for units in candidates.units:
        digest.update(f"{units.name}:{units.num}:{units.minimum};".encode())
        for tensor in (candidates.scores[units.name], candidates.gone.get(units.name)):
            if tensor is not None:
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

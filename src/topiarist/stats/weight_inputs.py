"""What single weights are multiplied by: norms of the inputs of each weight, and their Gram matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.plan import Units
from topiarist.stats.cut import rows_of
from topiarist.stats.layout import Layout
from topiarist.stats.patch_gram import gram
from topiarist.stats.statistic import Statistic, Subject
from topiarist.stats.uses import Use


class InputNorms(NamedTuple):
    """Per member, with the shape of its weights: ``norms`` ‖X_j‖₂ of the input that an entry is multiplied by, over
    all samples and positions, 0 where nothing is; ``outputs`` the number of the output that the entry belongs to."""

    norms: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class WeightNorms(Statistic):
    """The norms of what each entry of a weight is multiplied by: patches for a convolution, borders included."""

    reads = "inputs"
    watches = "forward"

    def __init__(self, subject: Subject) -> None:
        self._shapes = _shapes(subject)
        self._squares: dict[str, Tensor] = {}
        self._layouts: dict[str, Layout] = {}

    def on_use(self, use: Use) -> None:
        """Add Σ x² of every input."""
        if use.weight in self._shapes:
            self._layouts[use.weight] = Layout.of(use, self._shapes[use.weight])
            squares = use.total(use.inputs.double().square())
            self._squares[use.weight] = self._squares.get(use.weight, 0) + squares

    def of(self, units: Units) -> InputNorms:
        """The norms, cut into units as the weights are."""
        norms, outputs = {}, {}
        for name, shape in _shapes_of(units, self._shapes).items():
            if name in self._squares:
                norms[name] = self._layouts[name].inputs(self._squares[name].sqrt())
                outputs[name] = self._layouts[name].rows()
            else:
                norms[name], outputs[name] = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape).long()
        return InputNorms(rows_of(units, norms), rows_of(units, outputs))


@dataclass(frozen=True, eq=False)
class InputGram:
    """Σ x xᵀ / count over the rows x that a weight is multiplied by: ``matrix`` is float64 (groups, inputs, inputs).

    ``layout`` says how the weight lies as (groups, outputs, inputs).
    """

    matrix: Tensor
    count: int
    layout: Layout


class WeightGrams(Statistic):
    """The Gram matrix of what each weight is multiplied by: inputs² numbers a weight, in double precision."""

    reads = "inputs"
    watches = "forward"

    def __init__(self, subject: Subject) -> None:
        self._shapes = _shapes(subject)
        self._sums: dict[str, tuple[Tensor, int, Layout]] = {}

    def on_use(self, use: Use) -> None:
        """Add Σ x xᵀ."""
        if use.weight not in self._shapes:
            return
        product, num = gram(use), use.num_rows
        old = self._sums.get(use.weight)
        if old is None:
            self._sums[use.weight] = (product, num, Layout.of(use, self._shapes[use.weight]))
        else:
            self._sums[use.weight] = (old[0].add_(product), old[1] + num, old[2])

    def of(self, units: Units) -> dict[str, InputGram]:
        """The Gram matrices of the members that are multiplied by something, by name."""
        return {name: self.gram(name) for name in _shapes_of(units, self._shapes) if name in self._sums}

    def gram(self, name: str) -> InputGram:
        """The Gram matrix of one weight.

        Raises:
            InputError: nothing was multiplied by it.
        """
        if name not in self._sums:
            raise InputError(f"no product with {name!r} was seen; keep its layer, or try saliency='l2'")
        total, num, layout = self._sums[name]
        return InputGram(total / num, num, layout)

    @property
    def names(self) -> list[str]:
        """The weights that were multiplied by something."""
        return [*self._sums]


def _shapes(subject: Subject) -> dict[str, tuple[int, ...]]:
    held = {member.tensor for units in subject.units for member in units.members}
    return {name: tuple(p.shape) for name, p in subject.parameters.items() if name in held}


def _shapes_of(units: Units, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {m.tensor: shapes[m.tensor] for m in units.members if m.tensor in shapes}

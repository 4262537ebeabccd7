"""Filter norm: a unit that its own weights hardly make, or that hardly anyone listens to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.errors import InputError, nearest
from topiarist.saliency.base import Slices
from topiarist.saliency.sides import consuming, making

_DIRECTIONS = ("in", "out", "both")


@dataclass(frozen=True)
class FilterNorm:
    """The norm of the weights that make a unit: s_j = ‖w_j‖_p, biases and norms left out.

    With p = 1 the filter norm of Li et al. 2017, arXiv:1608.08710, with p = 2 the norm of a neuron's column.
    ``direction="out"`` takes the weights a_j that consume the unit, ``"both"`` the product ‖w_j‖_p ‖a_j‖_p, the only
    one of the three that stays when a unit before a rectifier is scaled, (w_j, a_j) → (α w_j, a_j / α).

    Raises:
        InputError: p is neither 1 nor 2, or the direction is not known.

    Example:
        >>> from topiarist.plan import Member, Units
        >>> members = (Member("1", 0, torch.arange(2), "out"), Member("2", 1, torch.arange(2), "in"))
        >>> weights = torch.tensor([[3.0, -4.0], [1.0, 0.0]]), torch.tensor([[1.0], [2.0]])
        >>> FilterNorm(p=1)(Slices(Units("fc", 2, members), weights))
        tensor([7., 1.], dtype=torch.float64)
    """

    p: int = 2
    direction: str = "in"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise InputError(f"a filter norm has p = 1 or 2, got {self.p!r}")
        if self.direction not in _DIRECTIONS:
            raise InputError(f"no direction is called {self.direction!r} ({nearest(self.direction, _DIRECTIONS)})")

    def __call__(self, slices: Slices) -> Tensor:
        if not slices.weights:
            return torch.zeros(slices.units.num, dtype=torch.float64)
        ends = {"in": (making,), "out": (consuming,), "both": (making, consuming)}[self.direction]
        norms = [torch.linalg.vector_norm(end(slices), self.p, dim=1) for end in ends]
        return torch.stack(norms).prod(0)

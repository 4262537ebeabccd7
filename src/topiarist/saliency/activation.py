"""Activation: what is small, or always the same, after the nonlinearity carries little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topiarist.errors import InputError, nearest
from topiarist.saliency.base import Slices
from topiarist.stats import Need
from topiarist.stats.unit_inputs import Activations, UnitMoments

_MOMENTS = ("mean", "magnitude", "variance")
_NEED = UnitMoments()


@dataclass(frozen=True)
class Activation:
    """A moment of what the consumers of unit j are multiplied by: ``"mean"`` E[z_j], ``"magnitude"`` E|z_j|, or
    ``"variance"`` Var[z_j], over samples, positions and features.

    The mean activation of Hu et al. 2016 and of Molchanov et al. 2017. Low goes first; a unit of variance 0 is a
    constant, and can be moved into the biases of its consumers without any loss.

    Raises:
        InputError: no such moment.

    Example:
        >>> import torch
        >>> from topiarist.plan import Units
        >>> seen = Activations(torch.tensor([1.0, -1.0]), torch.tensor([1.0, 2.0]), torch.zeros(2), torch.zeros(2))
        >>> Activation("magnitude")(Slices(Units("fc", 2, ()), (), {UnitMoments(): seen}))
        tensor([1., 2.])
    """

    moment: str = "magnitude"
    needs: ClassVar[frozenset[Need]] = frozenset({_NEED})

    def __post_init__(self) -> None:
        if self.moment not in _MOMENTS:
            raise InputError(f"no moment is called {self.moment!r} ({nearest(self.moment, _MOMENTS)})")

    def __call__(self, slices: Slices) -> Tensor:
        seen: Activations = slices.stats[_NEED]
        moment: Tensor = getattr(seen, self.moment)
        return moment

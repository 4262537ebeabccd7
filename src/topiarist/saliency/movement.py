"""Movement: what training moves away from zero is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from topiarist.saliency.base import Slices
from topiarist.saliency.gate import digest
from topiarist.stats.given import Given


@dataclass(frozen=True, eq=False)
class Movement:
    """How far a unit has moved away from zero: s_j = Σ_m Σ_i S^m_ji, with S = −Σ_t w_t · ∂L/∂w_t over training.

    Movement pruning (Sanh, Wolf, Rush 2020) from a record, made by `topiarist.stats.record_movement` while a model is
    fine-tuned. ``scores`` maps parameters to tensors of their shape. Signed: low is what shrinks.

    Raises:
        InputError: a parameter of the units has no scores, or of another shape.

    Example:
        >>> from topiarist.plan import Units
        >>> movement = Movement({"fc.weight": torch.tensor([[1.0, -3.0], [2.0, 0.0]])})
        >>> record = {need: (torch.tensor([[1.0, -3.0], [2.0, 0.0]]),) for need in movement.needs}
        >>> movement(Slices(Units("fc", 2, ()), (torch.ones(2, 2),), record))
        tensor([-2.,  2.], dtype=torch.float64)
    """

    scores: Mapping[str, Tensor] = field(repr=False)

    @cached_property
    def needs(self) -> frozenset[Given]:
        """The record itself."""
        return frozenset({Given(self.scores)})

    def __call__(self, slices: Slices) -> Tensor:
        (need,) = self.needs
        total = torch.zeros(slices.units.num, dtype=torch.float64)
        for part in slices.stats[need] if slices.weights else ():
            total = total.to(part.device) + part.double().sum(1)
        return total

    def __repr__(self) -> str:
        return f"Movement({len(self.scores)} tensors, digest {digest(self.scores)})"

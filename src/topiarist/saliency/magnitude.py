"""Magnitude: small weights matter least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.saliency.base import Slices

_SMALL = 1 << 12  # elements of a tensor that costs more to call for than to compute
_STEP = 1 << 18  # elements taken to double precision at a time: they stay in the cache


@dataclass(frozen=True)
class Magnitude:
    """The p-norm of all a unit has: s_j = (Σ_m Σ_i |w^m_ji|^p)^(1/p) over its members m and their elements i; for
    p = ∞ the largest |w^m_ji|.

    For single weights this is |w| (Han et al. 2015); for channels with p = 1 it extends Li et al. 2017 from the
    filter to its whole axis group, as Fang et al. 2023 do for p = 2. Sums run in double precision; a unit without
    weights scores 0.

    Raises:
        InputError: p is not 1, 2 or infinite.

    Example:
        >>> from topiarist.plan import Units
        >>> slices = Slices(Units("fc", 2, ()), (torch.tensor([[3.0], [0.0]]), torch.tensor([[4.0], [-1.0]])))
        >>> Magnitude(p=2)(slices)
        tensor([5., 1.], dtype=torch.float64)
    """

    p: float = 2
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.p not in (1, 2, math.inf):
            raise InputError(f"magnitude is a norm with p = 1 or 2, or math.inf, got {self.p!r}")

    def __call__(self, slices: Slices) -> Tensor:
        if len(slices.weights) == 1 and slices.weights[0].shape[1] == 1:
            return slices.weights[0].detach().abs().flatten()
        total = torch.zeros(slices.units.num, dtype=torch.float64)
        for weight in _joined([weight.detach() for weight in slices.weights]):
            if self.p == math.inf:
                total = torch.maximum(total.to(weight.device), weight.abs().amax(1).double())
            else:
                total = total.to(weight.device) + self._power(weight)
        return total if self.p == math.inf else total ** (1 / self.p)

    def _power(self, weight: Tensor) -> Tensor:
        """The p-th power of the norm of each row, in blocks that follow the memory."""
        if weight.numel() <= _STEP:
            return self._powers(weight).sum(1)
        if weight.stride(0) >= weight.stride(1):
            parts = torch.split(weight, max(1, _STEP // max(1, weight.shape[1])))
            return torch.cat([torch.linalg.vector_norm(part.double(), self.p, dim=1) ** self.p for part in parts])
        total = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
        for part in torch.split(weight, max(1, _STEP // max(1, len(weight))), dim=1):
            total += self._powers(part).sum(1)
        return total

    def _powers(self, weight: Tensor) -> Tensor:
        """The p-th power of every entry, in a tensor of its own."""
        precise = weight.double() if weight.dtype != torch.float64 else weight.clone()
        return precise.square_() if self.p == 2 else precise.abs_()


def _joined(weights: Sequence[Tensor]) -> list[Tensor]:
    """The same rows in fewer tensors: biases, norms and other small ones of one kind side by side."""
    small: dict[object, list[Tensor]] = {}
    large: list[Tensor] = []
    for weight in weights:
        kind = (weight.device, weight.dtype)
        (small.setdefault(kind, []) if weight.numel() <= _SMALL else large).append(weight)
    return [*(torch.cat(group, dim=1) if len(group) > 1 else group[0] for group in small.values()), *large]

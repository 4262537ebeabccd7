"""Structure ``n:m``: of every m weights in a row along the input, n stay (Mishra et al. 2021, arXiv:2104.08378).

Sparse tensor cores multiply by matrices of which every four weights in a row along the reduction dimension have two
zeros, at twice the rate. For a convolution these are input channels at one place of the kernel, not places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.graph import Axes
from topiarist.plan import Units
from topiarist.structure.base import require_some
from topiarist.structure.entries import back, best_of_rows, last, weights_to_cut
from topiarist.structure.weight import units_of_entries


@dataclass(frozen=True)
class NM:
    """One unit an entry, and of every ``m`` in a row along the input dimension the ``n`` highest scores stay.

    Groups begin at input 0. Where m does not divide the inputs, the last group has r < m entries and keeps
    ⌈n · r / m⌉ of them, no smaller a fraction than the others. Without a budget all goes that may; a sparsity below
    that goes part of the way, lowest scores first, and never leaves a group fewer than its n.

    Raises:
        InputError: not 0 < n < m.

    Example:
        >>> NM(2, 4).word
        '2:4'
    """

    n: int
    m: int
    is_physical: ClassVar[bool] = False
    names_amount: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise InputError(f"n:m keeps n of every m weights, 0 < n < m, got {self.n}:{self.m}; try '2:4'")

    @property
    def word(self) -> str:
        """What recipes call it: ``"2:4"``."""
        return f"{self.n}:{self.m}"

    @property
    def pattern(self) -> str:
        """What criteria that choose by groups themselves are told."""
        return self.word

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per weight of which it is known what its inputs are.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or no weight is left.
        """
        known = axes.matrices()
        units = [units_of_entries(axes, name) for name in weights_to_cut(axes, keep) if name in known]
        return require_some(units, "weight", axes)

    def protected(
        self, axes: Axes, units: Sequence[Units], scores: Mapping[str, Tensor], gone: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The n best of every m: bool ``(num units,)`` per set."""
        found, known = {}, axes.matrices()
        for each in units:
            shape, inner = axes.shape(each.name), known[each.name].inner
            score = scores[each.name]
            lost = gone.get(each.name, torch.zeros(each.num, dtype=torch.bool)).to(score.device)
            kept = best_of_groups(last(score, shape, inner), self.n, self.m, last(lost, shape, inner))
            found[each.name] = back(kept, shape, inner)
        return found


def best_of_groups(scores: Tensor, n: int, m: int, gone: Tensor | None = None) -> Tensor:
    """Mark the n highest of every m in a row, and ⌈n · r / m⌉ of the r that are left over: bool ``(rows, inputs)``.

    Example:
        >>> best_of_groups(torch.tensor([[4.0, 1.0, 3.0, 2.0, 9.0]]), 2, 4).tolist()
        [[True, False, True, False, True]]
    """
    gone = torch.zeros_like(scores, dtype=torch.bool) if gone is None else gone
    rows, num = scores.shape
    whole = num - num % m
    parts = [best_of_rows(scores[:, :whole].reshape(-1, m), n, gone[:, :whole].reshape(-1, m)).view(rows, whole)]
    if num > whole:
        parts.append(best_of_rows(scores[:, whole:], -(-n * (num - whole) // m), gone[:, whole:]))
    return torch.cat(parts, dim=1)

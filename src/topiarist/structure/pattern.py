"""Structure ``pattern``: inside each kernel the places of one pattern stay, out of a small library (Ma et al. 2020).

PCONV (arXiv:1909.05073): with a handful of patterns a compiler can unroll each, so that the irregular mask costs
nothing; eight patterns of four places serve the 3 × 3 kernels of a whole network.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.graph import Axes
from topiarist.plan import Units
from topiarist.structure.base import require_some
from topiarist.structure.entries import Shape, back, best_of_rows, energy, kernel_dims, last, weights_to_cut
from topiarist.structure.weight import units_of_entries


@dataclass(frozen=True)
class Pattern:
    """One unit an entry, and in every kernel of more than ``entries`` places those of one pattern stay.

    The library of each kernel shape holds ``num`` patterns for the whole network: of all kernels' own best places, the
    sets that keep the most energy Σ s·|s| of the kernels that choose them (w² for ``saliency="l2"``). Each kernel then
    takes the pattern of the library that keeps the most of its energy. Without a budget all else goes; a sparsity below
    that goes part of the way. What is gone stays gone: a kernel prefers patterns that need none of it.

    Raises:
        InputError: ``entries`` or ``num`` is no whole number from 1 up.
    """

    entries: int = 4
    num: int = 8
    is_physical: ClassVar[bool] = False
    names_amount: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if any(type(value) is not int or value < 1 for value in (self.entries, self.num)):
            raise InputError(f"patterns have 1 entry or more, and there is 1 or more, got {self!r}; try Pattern(4, 8)")

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per weight of a convolution whose kernel has more places than a pattern.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or the model has no such convolution.
        """
        names = [n for n in weights_to_cut(axes, keep) if math.prod(_places(axes, n)) > self.entries]
        what = f"convolution whose kernel has more than {self.entries} places"
        return require_some([units_of_entries(axes, name) for name in names], what, axes)

    def protected(
        self, axes: Axes, units: Sequence[Units], scores: Mapping[str, Tensor], gone: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The places of each kernel's pattern: bool ``(num units,)`` per set."""
        alike: dict[Shape, list[str]] = defaultdict(list)
        for each in units:
            alike[_places(axes, each.name)].append(each.name)
        found: dict[str, Tensor] = {}
        for names in alike.values():
            at = {name: (axes.shape(name), kernel_dims(axes, name)) for name in names}
            lost = {n: gone.get(n, torch.zeros(scores[n].shape, dtype=torch.bool)).cpu() for n in names}
            kernels = torch.cat([last(energy(scores[name]).cpu(), *at[name]) for name in names])
            without = torch.cat([last(lost[name], *at[name]) for name in names])
            kept = choose(kernels, library(kernels, self.entries, self.num, without), without)
            parts = torch.split(kept, [len(last(scores[name], *at[name])) for name in names])
            found.update((n, back(part, *at[n]).to(scores[n].device)) for n, part in zip(names, parts, strict=True))
        return found


def _places(axes: Axes, name: str) -> tuple[int, ...]:
    """The shape of the kernels of a weight."""
    return tuple(axes.shape(name)[d] for d in kernel_dims(axes, name))


def library(kernels: Tensor, entries: int, num: int, gone: Tensor | None = None) -> Tensor:
    """The ``num`` patterns of ``entries`` places that keep the most energy of the kernels whose own best they are.

    Args:
        kernels: energies, ``(num kernels, places)``.

    Returns:
        bool ``(at most num, places)``, the most energy first; ties by the places, in order.

    Example:
        >>> library(torch.tensor([[3.0, 2.0, 1.0], [0.0, 5.0, 4.0], [1.0, 4.0, 4.0]]), 2, 1).tolist()
        [[False, True, True]]
    """
    gone = torch.zeros_like(kernels, dtype=torch.bool) if gone is None else gone
    available = kernels.masked_fill(gone, -torch.inf)  # what is gone is chosen where too little else is left
    own = best_of_rows(available, entries, torch.zeros_like(gone))
    patterns, which = torch.unique(own, dim=0, return_inverse=True)
    sums = kernels.masked_fill(~own | gone, 0).sum(1)
    kept = torch.zeros(len(patterns), dtype=kernels.dtype).index_add_(0, which, sums)
    most = torch.argsort(kept, descending=True, stable=True)[:num]
    return torch.index_select(patterns, 0, most)


def choose(kernels: Tensor, patterns: Tensor, gone: Tensor | None = None) -> Tensor:
    """For each kernel the pattern that needs the fewest places that are gone, and of those keeps the most energy.

    Returns:
        bool ``(num kernels, places)``, without what is gone.
    """
    gone = torch.zeros_like(kernels, dtype=torch.bool) if gone is None else gone
    needed = gone.double() @ patterns.double().T
    kept = kernels.masked_fill(gone, 0).double() @ patterns.double().T
    fewest = needed == needed.min(1, keepdim=True).values
    return patterns[kept.masked_fill(~fewest, -torch.inf).argmax(1)].logical_and(~gone)

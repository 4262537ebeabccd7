"""Structure ``intra-kernel``: kernels that are alike in where they are large share a pattern (Yang et al. 2018).

Intra-kernel regular pruning (IKR): kernels are put into sets by where their energy lies, each set keeps the places that
keep the most of its energy, and only one pattern a set need be stored.
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
from topiarist.structure.entries import back, best_of_rows, energy, kernel_dims, last, num_places, weights_to_cut
from topiarist.structure.weight import units_of_entries

_MOST_ROUNDS = 100


@dataclass(frozen=True)
class IntraKernel:
    """One unit an entry, and in every kernel of more than ``entries`` places those of the pattern of its set stay.

    The kernels of a weight fall into at most ``sets`` sets by the cosine of their energies s·|s| place by place (w² for
    ``saliency="l2"``); a set keeps the ``entries`` places with the largest sums. Without a budget all else goes; a
    sparsity below that goes part of the way. What is gone stays gone, and counts for nothing in the sums.

    Raises:
        InputError: ``entries`` or ``sets`` is no whole number from 1 up.
    """

    entries: int = 4
    sets: int = 8
    is_physical: ClassVar[bool] = False
    names_amount: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if any(type(value) is not int or value < 1 for value in (self.entries, self.sets)):
            raise InputError(f"patterns have 1 entry or more, and there is 1 set or more, got {self!r}")

    @property
    def word(self) -> str:
        """What recipes call it: ``"intra-kernel:4x8"``."""
        return f"intra-kernel:{self.entries}x{self.sets}"

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per weight of a convolution whose kernel has more places than a pattern.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or the model has no such convolution.
        """
        names = [n for n in weights_to_cut(axes, keep) if num_places(axes, n) > self.entries]
        what = f"convolution whose kernel has more than {self.entries} places"
        return require_some([units_of_entries(axes, name) for name in names], what, axes)

    def protected(
        self, axes: Axes, units: Sequence[Units], scores: Mapping[str, Tensor], gone: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The places of the pattern of each kernel's set: bool ``(num units,)`` per set of units."""
        found = {}
        for each in units:
            at, score = (axes.shape(each.name), kernel_dims(axes, each.name)), scores[each.name]
            lost = last(gone.get(each.name, torch.zeros(each.num, dtype=torch.bool)).cpu(), *at)
            kernels = last(energy(score).cpu(), *at).masked_fill(lost, 0)
            which = alike(kernels, self.sets)
            sums = torch.zeros(self.sets, kernels.shape[1], dtype=kernels.dtype).index_add_(0, which, kernels)
            patterns = best_of_rows(sums, self.entries, torch.zeros_like(sums, dtype=torch.bool))
            found[each.name] = back(patterns[which] & ~lost, *at).to(score.device)
        return found


def alike(kernels: Tensor, num: int) -> Tensor:
    """The set of each kernel, by the cosine of what it has at each place: int64 ``(num kernels,)``, in [0, ``num``).

    k-means on the sphere: the first centre is the kernel of the most energy, each next one the kernel least like those
    there are; then kernels and centres move in turn until none does.

    Args:
        kernels: energies, ``(num kernels, places)``.

    Example:
        >>> alike(torch.tensor([[9.0, 0.0], [0.0, 1.0], [2.0, 0.1], [0.1, 3.0]]), 2).tolist()
        [0, 1, 0, 1]
    """
    norms = torch.linalg.vector_norm(kernels, dim=1, keepdim=True)
    rows = torch.where(norms > 0, kernels / norms, 0.0)
    chosen = [int(norms.argmax())]
    while len(chosen) < min(num, len(rows)):
        chosen.append(int((rows @ rows[chosen].T).amax(1).argmin()))
    centres = rows[chosen]
    which = (rows @ centres.T).argmax(1)
    for _ in range(_MOST_ROUNDS):
        sums = torch.zeros_like(centres).index_add_(0, which, rows)
        sizes = torch.linalg.vector_norm(sums, dim=1, keepdim=True)
        centres = torch.where(sizes > 0, sums / sizes, centres)  # a set that nothing is in waits where it was
        moved = (rows @ centres.T).argmax(1)
        if torch.equal(moved, which):
            break
        which = moved
    return which

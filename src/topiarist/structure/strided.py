"""Structure ``strided``: inside the kernels of one source map every s-th place stays (Anwar, Hwang, Sung 2015).

All kernels that leave one feature map share the pattern (stride, offset), so that whole rows of the im2col matrix go,
and the product of a convolution becomes shorter without any index (arXiv:1512.08571, section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.graph import Axes
from topiarist.graph.matrix import Matrix
from topiarist.plan import Units
from topiarist.structure.base import require_some
from topiarist.structure.entries import energy, index_over, num_places, units_by_entry
from topiarist.structure.pattern import choose


@dataclass(frozen=True)
class Strided:
    """One unit a column W[:, i, u, v] of the kernels of one source map; of each map the places p with
    p mod ``stride`` = offset stay, p counting the kernel in row-major order, and the offset is the one that keeps the
    most energy Σ s·|s|.

    In a grouped convolution, maps at the same place of their group share a pattern. Without a budget all else goes; a
    sparsity below that goes part of the way.

    Raises:
        InputError: ``stride`` is no whole number from 2 up.
    """

    stride: int = 2
    is_physical: ClassVar[bool] = False
    names_amount: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if type(self.stride) is not int or self.stride < 2:
            raise InputError(f"stride keeps every second place or fewer, got {self.stride!r}; try 'strided:2'")

    @property
    def word(self) -> str:
        """What recipes call it: ``"strided:2"``."""
        return f"strided:{self.stride}"

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per weight of a convolution whose kernel has as many places as the stride.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or the model has no such convolution.
        """

        def columns(name: str, matrix: Matrix) -> Tensor | None:
            shape = axes.shape(name)
            if num_places(axes, name) < self.stride:
                return None
            return index_over(shape, [d for d in range(len(shape)) if d not in matrix.outer])

        what = f"convolution whose kernel has {self.stride} places or more"
        return require_some(units_by_entry(axes, keep, columns), what, axes)

    def protected(
        self, axes: Axes, units: Sequence[Units], scores: Mapping[str, Tensor], gone: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The places that each map's pattern keeps: bool ``(num units,)`` per set."""
        found = {}
        for each in units:
            num, score = num_places(axes, each.name), scores[each.name]
            lost = gone.get(each.name, torch.zeros(each.num, dtype=torch.bool)).cpu().view(-1, num)
            patterns = torch.arange(num) % self.stride == torch.arange(self.stride)[:, None]
            found[each.name] = choose(energy(score).cpu().view(-1, num), patterns, lost).flatten().to(score.device)
        return found

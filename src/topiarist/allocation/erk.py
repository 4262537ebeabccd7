"""Erdős–Rényi and Erdős–Rényi–Kernel: densities that follow from the shapes of the layers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topiarist.allocation.base import Candidates
from topiarist.allocation.density import clipped, remove_to


@dataclass(frozen=True)
class ErdosRenyi:
    """Give layer l the density min(1, ε · r_l): wide layers lose more, as their r_l falls with the width.

    r_l = (n_in + n_out) / (n_in · n_out) (Mocanu et al. 2018, SET). With ``kernel``, the sizes of the kernel count
    too: r_l = (n_in + n_out + w + h) / (n_in · n_out · w · h) (Evci et al. 2020, RigL). The one ε is that at which the
    densities make up the level; layers that reach 1 stay dense, and ε is solved over the rest. Sizes are those of the
    weight that the units are named after; where units are channels, the density is that of channels.

    Example:
        >>> import torch
        >>> from topiarist.plan import Units
        >>> shapes = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}
        >>> weights = {name: torch.rand(shape) for name, shape in shapes.items()}
        >>> units = tuple(Units(name, w.numel(), ()) for name, w in weights.items())
        >>> scores = {name: w.flatten() for name, w in weights.items()}
        >>> removed = ErdosRenyi()(Candidates(units, scores, weights.__getitem__), 0.9)
        >>> {name: round(1 - float(r.double().mean()), 4) for name, r in removed.items()}
        {'fc1': 0.0796, 'fc2': 0.2302, 'fc3': 1.0}
    """

    kernel: bool = True
    needs_budget: ClassVar[bool] = True

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        raw = {u.name: self._raw(candidates.weight(u.name).shape) for u in candidates.units}
        high = 1 / min(raw.values(), default=1.0)
        return remove_to(
            candidates, level, lambda ε: {name: clipped(ε * each) for name, each in raw.items()}, 0.0, high
        )

    def _raw(self, shape: Sequence[int]) -> float:
        sizes = tuple(shape) if self.kernel else tuple(shape[:2])
        return sum(sizes) / math.prod(sizes) if math.prod(sizes) else 1.0

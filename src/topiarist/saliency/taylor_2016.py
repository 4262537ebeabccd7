"""Taylor 2016: feature maps whose activations times their gradients are small, example by example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.saliency.base import Slices
from topiarist.saliency.taylor import moment


@dataclass(frozen=True)
class Taylor2016:
    """The mean over examples of |the spatial mean of z ∂L/∂z|, divided by the layer's norm:
    s_j = θ_j / √Σ_k θ_k², θ_j = E_n |1/M Σ_m z_jm ∂L_n/∂z_jm|.

    Molchanov et al. 2017 (arXiv 2016). The magnitude is taken after the mean over a map's M positions and before that
    over examples. Maps are seen where weights take them in; those that several layers read add up before the
    magnitude. Without ``normalise`` layers are not comparable.

    Raises:
        InputError: no weight takes some units in.

    Example:
        >>> from topiarist.plan import Units
        >>> gates = {"magnitude": torch.tensor([3.0, 4.0])}
        >>> Taylor2016()(Slices(Units("fc", 2, ()), (), {"gate gradients": gates}))
        tensor([0.6000, 0.8000])
    """

    normalise: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"gate gradients"})
    is_comparable: ClassVar[bool] = True

    def __call__(self, slices: Slices) -> Tensor:
        found = moment(slices, "magnitude")
        norm = torch.linalg.vector_norm(found) if self.normalise else torch.ones((), device=found.device)
        return found / torch.where(norm == 0, 1, norm)

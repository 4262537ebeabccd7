"""SynFlow: what carries flow from the inputs to the outputs stays, so that no layer is ever cut off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.saliency.base import Slices


@dataclass(frozen=True)
class SynFlow:
    """The synaptic flow through a unit: s_j = Σ_m Σ_i |θ^m_ji · ∂R/∂θ^m_ji|, R = Σ f_|θ|(1).

    Tanaka et al. 2020: at initialisation, without data, and iteratively: ``schedule="exponential", steps=100``. The
    flow into a neuron is the flow out of it, and that through a layer is R, where the network is homogeneous and has
    no biases; then no layer collapses as long as another has flow to lose.

    Example:
        >>> from topiarist.plan import Units
        >>> SynFlow()(Slices(Units("fc", 2, ()), (torch.tensor([[-2.0], [1.0]]),), {"flow": (torch.ones(2, 1),)}))
        tensor([2., 1.], dtype=torch.float64)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"flow"})
    is_comparable: ClassVar[bool] = True

    def __call__(self, slices: Slices) -> Tensor:
        total = torch.zeros(slices.units.num, dtype=torch.float64)
        for weight, flow in zip(slices.weights, slices.stats["flow"] if slices.weights else (), strict=True):
            total = total.to(weight.device) + (weight.double() * flow).abs().sum(1)
        return total

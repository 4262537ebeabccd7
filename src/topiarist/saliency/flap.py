"""FLAP: what hardly fluctuates can be replaced by its mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.errors import InputError, nearest
from topiarist.saliency.base import Slices
from topiarist.stats import Need
from topiarist.stats.features import ConsumedFeatures, Features

_METRICS = ("wifv", "ifv", "wifn")


@dataclass(frozen=True)
class Flap:
    """Fluctuation (An et al. 2024, arXiv:2312.11983), standardised per consumer: s = mean over features (m_j − μ) / σ.

    m_j is ``"wifv"`` Var[x_j] · ‖w_j‖₂², the expected change of the outputs when feature j is replaced by its mean;
    ``"ifv"`` Var[x_j]; or ``"wifn"`` mean|w_j| · ‖x_j‖₂. x_j is what the consumers of a unit are multiplied by, w_j the
    weights of one consumer. μ and σ run over all features of the consumer, so that heads and neurons of all layers
    compare; ``standardize=False`` leaves them out. Several consumers are averaged. The means belong into the biases of
    the consumers after the cut. (The authors' code squares the metric of attention first, which is not done here.)

    Raises:
        InputError: no such metric.

    Example:
        >>> from topiarist.plan import Units
        >>> seen = Features(*torch.tensor([[[1.0], [2.0], [3.0]]]).expand(4, -1, -1).double())
        >>> Flap("ifv", standardize=False)(Slices(Units("fc", 3, ()), (), {ConsumedFeatures: (seen,)}))
        tensor([1., 2., 3.], dtype=torch.float64)
    """

    metric: str = "wifv"
    standardize: bool = True
    needs: ClassVar[frozenset[Need]] = frozenset({ConsumedFeatures})

    @property
    def is_comparable(self) -> bool:
        """Whether scores of different layers compare as they are."""
        return self.standardize

    def __post_init__(self) -> None:
        if self.metric not in _METRICS:
            raise InputError(f"no metric of fluctuation is called {self.metric!r} ({nearest(self.metric, _METRICS)})")

    def __call__(self, slices: Slices) -> Tensor:
        seen: tuple[Features, ...] = slices.stats[ConsumedFeatures]
        return torch.stack([self._of_consumer(features).mean(1) for features in seen]).mean(0)

    def _of_consumer(self, seen: Features) -> Tensor:
        metric = {
            "wifv": seen.variance * seen.squares,
            "ifv": seen.variance,
            "wifn": seen.magnitude * seen.norm,
        }[self.metric]
        if not self.standardize:
            return metric
        spread = metric.std(correction=0)
        return (metric - metric.mean()) / spread if spread > 0 else torch.zeros_like(metric)

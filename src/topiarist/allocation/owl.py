"""OWL: layers with more outliers keep more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topiarist.allocation.base import Candidates
from topiarist.allocation.density import clipped, joined, remove_to
from topiarist.errors import InputError, nearest

_BY = ("block", "layer")


@dataclass(frozen=True)
class Owl:
    """Give block b the density clip(d + o_b, 0, 1), o_b higher where more of its scores stand out; d meets the level.

    D_b = #{u in b : s_u > M · mean_b(s)} / n_b is the layer outlier distribution (Yin et al. 2023, "Outlier weighed
    layerwise sparsity"; there the score is Wanda's |w| · ‖x‖, M = 5 and λ = 0.08), and o_b is D_b scaled to a band of
    width 2λ and centred: 2λ (D_b − min D) / (max D − min D), less the mean over blocks. The scores are those of the
    saliency; units gone are left out. A block is what one element of a list of layers holds ("blocks.3"); with
    ``by="layer"`` every layer has a density of its own.

    Raises:
        InputError: ``outlier`` or ``band`` is negative or not finite, or ``by`` is not known.

    Example:
        >>> import torch
        >>> from topiarist.plan import Units
        >>> units = (Units("0.weight", 8, (), "0"), Units("1.weight", 8, (), "1"))
        >>> scores = {"0.weight": torch.tensor([1.0] * 7 + [99.0]), "1.weight": torch.arange(8.0)}
        >>> {k: int(v.sum()) for k, v in Owl(band=0.125)(Candidates(units, scores), 0.5).items()}
        {'0.weight': 3, '1.weight': 5}
    """

    outlier: float = 5.0
    band: float = 0.08
    by: str = "block"
    needs_budget: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (0 <= self.outlier < math.inf and 0 <= self.band < math.inf):
            raise InputError(f"M and λ must be finite and not negative, got {self.outlier!r} and {self.band!r}")
        if self.by not in _BY:
            raise InputError(f"densities are by 'block' or by 'layer', not by {self.by!r} ({nearest(self.by, _BY)})")

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        offset = candidates.once(self, lambda: self._offsets(candidates))
        reach = 1 + 2 * self.band
        return remove_to(
            candidates, level, lambda d: {name: clipped(d + o) for name, o in offset.items()}, -reach, reach
        )

    def _offsets(self, candidates: Candidates) -> dict[str, float]:
        """How much denser than d each set of units is."""
        blocks: dict[str, list[str]] = {}
        for units in candidates.units:
            name = units.layer or units.name
            blocks.setdefault(block_of(name) if self.by == "block" else name, []).append(units.name)
        outliers = {block: self._outliers(joined(candidates, names)) for block, names in blocks.items()}
        low, high = min(outliers.values(), default=0.0), max(outliers.values(), default=0.0)
        scaled = {b: 2 * self.band * (d - low) / (high - low) if high > low else 0.0 for b, d in outliers.items()}
        mean = sum(scaled.values()) / max(1, len(scaled))
        return {name: scaled[block] - mean for block, names in blocks.items() for name in names}

    def _outliers(self, scores: Tensor) -> float:
        """The layer outlier distribution: the fraction of scores above M times their mean."""
        return float((scores > self.outlier * scores.mean()).double().mean()) if scores.numel() else 0.0


def block_of(layer: str) -> str:
    """The part of a layer's name up to its first number, which says where in a list of layers it is.

    Example:
        >>> block_of("encoder.blocks.3.mlp.fc1"), block_of("head")
        ('encoder.blocks.3', 'head')
    """
    parts = layer.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: first + 1])

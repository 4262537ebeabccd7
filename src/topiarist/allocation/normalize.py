"""What makes the scores of different layers comparable.

==============  =========================================================================================
``"none"``      s
``"sum"``       s / Σ|s|
``"mean"``      s / mean|s| (Fang et al. 2023, DepGraph)
``"max"``       s / max|s|
``"fro"``       s / ‖s‖₂
``"rms"``       s / (‖s‖₂ / √n)
``"min-max"``   (s − min s) / (max s − min s), "standarization" of Torch-Pruning
``"gaussian"``  (s − mean s) / std s, the z-score (std without Bessel's correction; Renda et al. 2020, ``zprune``)
==============  =========================================================================================

``"auto"`` is ``"none"`` where all units are single weights or the criterion says that its scores compare as they are
(changes of the loss, gates), and ``"mean"`` otherwise. Statistics are those of one
layer's units that are not gone; where a divisor is zero it counts as one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from topiarist.allocation.base import Candidates
from topiarist.errors import InputError, nearest

Statistics = Callable[[Tensor], tuple[Tensor, Tensor]]


def _divide(by: Callable[[Tensor], Tensor]) -> Statistics:
    return lambda scores: (scores.new_zeros(()), by(scores))


NORMALIZATIONS: dict[str, Statistics] = {
    "none": _divide(lambda s: s.new_ones(())),
    "sum": _divide(lambda s: s.abs().sum()),
    "mean": _divide(lambda s: s.abs().mean()),
    "max": _divide(lambda s: s.abs().max()),
    "fro": _divide(torch.linalg.vector_norm),
    "rms": _divide(lambda s: torch.linalg.vector_norm(s) / len(s) ** 0.5),
    "min-max": lambda s: (s.min(), s.max() - s.min()),
    "gaussian": lambda s: (s.mean(), s.std(correction=0)),
}


def check(how: str) -> None:
    """Refuse what is no normalization.

    Raises:
        InputError: ``how`` is not known.
    """
    if how not in ("auto", *NORMALIZATIONS):
        raise InputError(f"no normalization {how!r} ({nearest(how, ['auto', *NORMALIZATIONS])})")


def comparable(candidates: Candidates, how: str) -> dict[str, Tensor]:
    """The scores of all sets of units as ``how`` compares them: by name ``(num units,)``, in the same order as before.

    Example:
        >>> from topiarist.plan import Units
        >>> candidates = Candidates((Units("a", 2, ()),), {"a": torch.tensor([1.0, 3.0])})
        >>> comparable(candidates, "gaussian")["a"].tolist()
        [-1.0, 1.0]
    """
    if how == "auto":
        single = all(
            member.dim is None and member.unit is None for units in candidates.units for member in units.members
        )
        how = "none" if single or candidates.are_comparable else "mean"
    return {units.name: _normalized(candidates, units.name, how) for units in candidates.units}


def _normalized(candidates: Candidates, name: str, how: str) -> Tensor:
    scores = candidates.scores[name]
    if how == "none":
        return scores
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    left = scores[~candidates.gone[name]] if name in candidates.gone else scores
    if not left.numel():
        return scores
    start, size = NORMALIZATIONS[how](left)
    return (scores - start) / size if size > 0 else scores - start

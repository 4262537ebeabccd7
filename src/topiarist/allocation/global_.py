"""Global: one ranking of all units of all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topiarist.allocation.base import Candidates, check_level, share
from topiarist.allocation.normalize import check, comparable


@dataclass(frozen=True)
class Global:
    """Remove the lowest k = ⌊level · N + ½⌋ of all N units in one ranking, keeping each `Units.minimum`.

    Layers get different fractions, as their scores deserve (Blalock et al. 2020, ShrinkBench's ``GlobalMag…``).
    Norms of whole channels grow with the channel's extent, so that narrow layers would go first: ``normalize`` is one
    of `topiarist.allocation.normalize`, such as ``"mean"``, which divides each score by the mean magnitude of the
    scores of its set (Fang et al. 2023, DepGraph); ``"none"`` compares scores as they are; ``"auto"`` is ``"none"``
    where all units are single weights, or where the criterion says that its scores compare as they are (changes of the
    loss, gates), and ``"mean"`` otherwise.

    Raises:
        InputError: ``normalize`` is none of these.

    Example:
        >>> import torch
        >>> from topiarist.plan import Units
        >>> units = (Units("a", 2, ()), Units("b", 2, ()))
        >>> candidates = Candidates(units, {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([10.0, 10.0])})
        >>> {k: v.tolist() for k, v in Global("none")(candidates, 0.5).items()}
        {'a': [True, True], 'b': [False, False]}
        >>> {k: v.tolist() for k, v in Global("mean")(candidates, 0.5).items()}
        {'a': [True, False], 'b': [True, False]}
    """

    normalize: str = "auto"
    needs_budget: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self.normalize)

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        check_level(level)
        scores = candidates.once(self, lambda: comparable(candidates, self.normalize))
        return candidates.lowest_of_all(share(level, candidates.num_units), scores)

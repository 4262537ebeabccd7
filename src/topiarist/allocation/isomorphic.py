"""Isomorphic groups: units compete with units of the same kind only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topiarist.allocation.base import Candidates, check_level, share
from topiarist.allocation.normalize import check, comparable


@dataclass(frozen=True)
class Isomorphic:
    """Remove the same fraction of each group of alike layers, in one ranking within the group: k_g = ⌊level · n_g + ½⌋.

    Scores of a convolution, of a hidden layer of an MLP and of a residual stream have distributions of their own;
    those of the same substructure in different places can be compared (Fang et al. 2024, "Isomorphic pruning for
    vision models"). Sets of units are alike where the same tensors hang on them: layers of the same types, as many,
    in the same places, with kernels of the same size; widths may differ. Within a group scores are compared after
    ``normalize``, one of `topiarist.allocation.normalize`.

    Raises:
        InputError: ``normalize`` is not known.

    Example:
        >>> import torch
        >>> from topiarist.plan import Units
        >>> kinds = {"a": "Conv2d", "b": "Linear", "c": "Linear"}
        >>> units = tuple(Units(name, 2, (), kind=kind) for name, kind in kinds.items())
        >>> scores = {"a": torch.tensor([9.0, 9.0]), "b": torch.tensor([1.0, 2.0]), "c": torch.tensor([3.0, 4.0])}
        >>> {k: int(v.sum()) for k, v in Isomorphic(normalize="none")(Candidates(units, scores), 0.5).items()}
        {'a': 1, 'b': 2, 'c': 0}
    """

    normalize: str = "mean"
    needs_budget: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self.normalize)

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        check_level(level)
        parts = candidates.once(self, lambda: [*self._groups(candidates)])
        removed: dict[str, Tensor] = {}
        for part, scores in parts:
            removed.update(part.lowest_of_all(share(level, part.num_units), scores))
        return {units.name: removed[units.name] for units in candidates.units}

    def _groups(self, candidates: Candidates) -> Iterator[tuple[Candidates, dict[str, Tensor]]]:
        for names in groups(candidates).values():
            part = candidates.only(names)
            yield part, comparable(part, self.normalize)


def groups(candidates: Candidates) -> dict[str, list[str]]:
    """The names of the sets of units that are alike, by their role; those without a role go by type of layer."""
    found: dict[str, list[str]] = {}
    for units in candidates.units:
        found.setdefault(candidates.roles.get(units.name, units.kind), []).append(units.name)
    return found

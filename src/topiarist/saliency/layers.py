"""What criteria of whole layers share: the layer that units are entries of, and runs of inputs with quotas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.saliency.base import Slices
from topiarist.stats import Need, Statistic
from topiarist.stats.layout import Layout
from topiarist.stats.weight_inputs import InputGram, WeightGrams

Solve = Callable[[Tensor, Tensor, Tensor], Tensor]  # weight (outputs, inputs), Gram matrix, what goes → new weight


@dataclass(frozen=True, eq=False)
class Quotas:
    """How many inputs of every run of m may go: m − n of m, and ⌊(m − n) · r / m⌋ of the r that are left over.

    ``runs`` says which run an input belongs to, ``most`` how many may go of each: int64 (inputs,) and (runs,).
    """

    runs: Tensor
    most: Tensor

    @classmethod
    def of(cls, pattern: str, layout: Layout) -> Quotas:
        """Those of a pattern n:m on the inputs of a weight."""
        n, m = parse_pattern(pattern)
        runs = layout.runs(m)
        sizes = torch.bincount(runs)
        return cls(runs, sizes * (m - n) // m)

    @property
    def total(self) -> int:
        """How many go of one row."""
        return int(self.most.sum())

    def met(self, gone: Tensor) -> Tensor:
        """Which inputs are in a run that has lost its quota: bool (rows, inputs), as ``gone``."""
        runs, most = self.runs.to(gone.device), self.most.to(gone.device)
        num = gone.new_zeros(len(gone), len(most), dtype=torch.int64).index_add_(1, runs, gone.long())
        return (num >= most)[:, runs]


def chosen_first(costs: Tensor, chosen: Tensor) -> Tensor:
    """Scores in [−1, 0) for what is chosen and in [0, 1) for the rest, each in the order of its costs.

    Example:
        >>> chosen_first(torch.tensor([1.0, 3.0, 1.0, 3.0]), torch.tensor([True, True, False, False]))
        tensor([-0.6667, -0.4000,  0.3333,  0.6000])
    """
    share = costs / (costs + costs.mean()).clamp(min=torch.finfo(costs.dtype).tiny)
    return torch.where(chosen, share - 1, share)


def parse_pattern(pattern: str) -> tuple[int, int]:
    """The numbers of ``"n:m"``: n of every m inputs stay.

    Raises:
        InputError: it is not of that form, or not 0 < n < m.

    Example:
        >>> parse_pattern("2:4")
        (2, 4)
    """
    n, _, m = pattern.partition(":")
    if not (n.isdecimal() and m.isdecimal() and 0 < int(n) < int(m)):
        raise InputError(f"a pattern n:m keeps n of every m weights, 0 < n < m, got {pattern!r}; try '2:4'")
    return int(n), int(m)


def layer_of(slices: Slices, need: Need) -> tuple[Tensor, InputGram]:
    """The weight whose entries the units are, in its shape, and the Gram matrix of its inputs.

    Raises:
        InputError: units are not single weights, or nothing was multiplied by them.
    """
    members = slices.units.members
    if len(members) != 1 or members[0].dim is not None or members[0].unit is not None:
        raise InputError(
            f"this criterion removes single weights, {slices.units.name!r} holds larger units; try structure='weight'"
        )
    grams: Mapping[str, InputGram] = slices.stats[need]
    name = members[0].tensor
    if name not in grams:
        raise InputError(f"no product with {name!r} was seen; keep its layer, or try saliency='l2'")
    return slices.weights[0].detach().reshape(grams[name].layout.shape), grams[name]


def each_group(
    weights: Mapping[str, Tensor], removed: Mapping[str, Tensor], grams: Statistic, solve: Solve
) -> dict[str, Tensor]:
    """New values of every weight that loses entries and whose inputs were seen, group by group."""
    assert isinstance(grams, WeightGrams)  # noqa: S101 what `needs` starts
    changed = {}
    for name in grams.names:
        if name in removed and bool(removed[name].any()):
            gram, weight = grams.gram(name), weights[name].detach()
            parts = zip(gram.layout.matrix(weight), gram.matrix, gram.layout.matrix(removed[name]), strict=True)
            changed[name] = gram.layout.weight(torch.stack([solve(*part) for part in parts])).to(weight.dtype)
    return changed

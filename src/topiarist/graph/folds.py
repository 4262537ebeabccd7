"""Sizes that become values, and the weights that make up for it when they shrink.

The 1/√d of attention is a number that the code computes from a size: with d' in place of d, the code multiplies by
another one. Where the number is a multiple of dᵖ, and multiplies what a weight has made, the function stays if that
weight is multiplied by (d / d')ᵖ. Which numbers depend on which sizes is found by running the model, on tensors without
values, with less of these sizes; which weights may carry the ratio says `topiarist.graph.multiples`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from topiarist.graph.axis import Axis
from topiarist.graph.multiples import NUMBER, Atom, Part, Powers, overlap, places
from topiarist.graph.rehearsal import Number, Performance
from topiarist.graph.sizes import Constraint, Expression, Term, text

if TYPE_CHECKING:
    from topiarist.graph.groups import Axes

Sizes = Mapping[Axis, int]
_SAME = 1e-9  # relative: powers of two sizes are told apart by far more


@dataclass(frozen=True, eq=False)
class Fold:
    """A number in the code that is a multiple of ``size`` to the ``power``, and multiplies what ``entries`` make: the
    positions, by tensor and dimension, bool of shape ``(size,)``. ``where`` is the line that says the number."""

    size: Expression
    power: float
    entries: Mapping[str, tuple[Tensor, ...]]
    where: str

    def __str__(self) -> str:
        return f"({text(self.size)}) ** {self.power:.4g} is made up for in {', '.join(self.entries)}"


@dataclass(frozen=True, eq=False)
class _Group:
    """Axes that shrink together, and the sizes that become values by it."""

    more: Sizes
    least: Sizes
    values: tuple[Constraint, ...]


@dataclass(frozen=True)
class Found:
    """What `folds` has found: the folds of each set of leaves, the values they account for, and the places in the
    performance of the numbers."""

    folds: Mapping[frozenset[Axis], tuple[Fold, ...]]
    values: tuple[Constraint, ...] = ()
    sites: frozenset[int] = frozenset()


def folds(
    axes: Axes, values: Sequence[Constraint], held: Callable[[], Collection[Axis]],
    perform: Callable[[Sizes], Performance],
    reads: Callable[[Collection[int]], Sequence[Powers]], shapes: Mapping[str, tuple[int, ...]],
) -> Found:  # fmt: skip
    """The numbers that follow from sizes and that weights can make up for.

    ``values`` are the constraints of sizes that became numbers in one run of the whole model, ``held`` finds the
    leaves that cannot shrink whatever the numbers; ``perform`` runs it with other sizes, ``reads`` whole, with
    numbers at these places as atoms (`topiarist.graph.multiples.Multiples`), and ``shapes`` are those of the
    weights.
    """
    groups = list(_groups(axes, values))
    stopped = set(held()) if groups else set()
    groups = [group for group in groups if not group.more.keys() & stopped]
    if not groups:
        return Found({})
    whole, runs = perform({}), _runs(groups)
    numbers = [perform(sizes) for _, sizes in runs]
    if any([n.operator for n in run] != [n.operator for n in whole] for run in numbers):
        return Found({})
    sites, bad = _sites(axes, groups, runs, whole, numbers)
    read = reads(sites)
    made: dict[int, list[tuple[int, Fold]]] = {g: [] for g in range(len(groups))}
    for place, (g, size, power) in sites.items():
        carrier = _carrier(place, read, shapes)
        if carrier is None:
            bad.add(g)
        else:
            made[g].append((place, Fold(size, power * carrier[0], carrier[1], whole[place].where)))
    good = {g for g, own in made.items() if g not in bad and len(groups[g].values) <= len(own)}
    hang = {id(v): [g for g, group in enumerate(groups) if v in group.values] for v in values}
    return Found(
        {frozenset(groups[g].more): _combined([fold for _, fold in made[g]]) for g in good},
        tuple(v for v in values if hang[id(v)] and good.issuperset(hang[id(v)])),
        frozenset(place for g in good for place, _ in made[g]),
    )


def _combined(folds: Sequence[Fold]) -> tuple[Fold, ...]:
    """The same with one fold where several are of the same size and entries."""
    made: list[Fold] = []
    for fold in folds:
        same = [other for other in made if other.size is fold.size and _are_equal(other.entries, fold.entries)]
        if same:
            made[made.index(same[0])] = replace(same[0], power=same[0].power + fold.power)
        else:
            made.append(fold)
    return tuple(made)


def _are_equal(left: Mapping[str, tuple[Tensor, ...]], right: Mapping[str, tuple[Tensor, ...]]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(a, b) for name in left for a, b in zip(left[name], right[name], strict=True)
    )


# ------------------------------------------------------------------------------------ which number hangs on which size


def _groups(axes: Axes, values: Sequence[Constraint]) -> Iterator[_Group]:
    whole = axes.size_under({})
    for step, most in axes.steps():
        more, least = ({a: a.size - times * n for a, n in step.items()} for times in (most - most // 3, 1))
        size = axes.size_under(least)
        changed = tuple(v for v in values if size(_of(v)) != whole(_of(v)))
        if changed:
            yield _Group(more, least, changed)


def _of(value: Constraint) -> Expression:
    """The size that became a value; the constraint says that it minus what it is stays zero."""
    return value.expression.left if isinstance(value.expression, Term) else value.expression


def _runs(groups: Sequence[_Group]) -> list[tuple[frozenset[int], Sizes]]:
    """Sets of groups to be cut at once, such that what changes in which run says which group it hangs on.

    The number of each group is written with bits and their opposites: two groups together are never a third one.
    """
    codes = [
        frozenset(g for g in range(len(groups)) if (g >> bit) & 1 == value)
        for bit in range(max(1, (len(groups) - 1).bit_length()))
        for value in (0, 1)
    ]
    runs: list[tuple[frozenset[int], Sizes]] = [
        (code, {leaf: size for g in code for leaf, size in groups[g].more.items()}) for code in codes if code
    ]
    least = {leaf: size for group in groups for leaf, size in group.least.items()}
    return [*runs, (frozenset(range(len(groups))), least)]


def _sites(
    axes: Axes, groups: Sequence[_Group], runs: Sequence[tuple[frozenset[int], Sizes]], whole: Performance,
    numbers: Sequence[Performance],
) -> tuple[dict[int, tuple[int, Expression, float]], set[int]]:  # fmt: skip
    """The numbers that change, each with its group, the size and its power; and the groups of which this is not so."""
    patterns = [frozenset(r for r, (cut, _) in enumerate(runs) if g in cut) for g in range(len(groups))]
    sites: dict[int, tuple[int, Expression, float]] = {}
    bad: set[int] = set()
    for place, number in enumerate(whole):
        pattern = frozenset(r for r, run in enumerate(numbers) if run[place] != number)
        if not pattern:
            continue
        found = None
        if pattern in patterns:
            g = patterns.index(pattern)
            found = _power(axes, groups[g], number, [(runs[r][1], numbers[r][place]) for r in sorted(pattern)])
        if found is not None:
            sites[place] = (g, *found)
        else:
            bad.update([g for g, own in enumerate(patterns) if own <= pattern] or range(len(groups)))
    return sites, bad


def _power(
    axes: Axes, group: _Group, before: Number, after: Sequence[tuple[Sizes, Number]]
) -> tuple[Expression, float] | None:
    """The size of which a number is a multiple of a power, and the power."""
    if any(len(n.values) != 1 or n.values[0] * before.values[0] <= 0 for n in (before, *(n for _, n in after))):
        return None
    whole, under = axes.size_under({}), [axes.size_under(sizes) for sizes, _ in after]
    is_single = group.more == group.least
    for value in group.values:
        size, others = whole(_of(value)), [other(_of(value)) for other in under]
        if size <= 0 or any(other <= 0 or other == size for other in others):
            continue
        logs = [math.log(n.values[0] / before.values[0]) for _, n in after]
        powers = [log / math.log(other / size) for log, other in zip(logs, others, strict=True)]
        if max(powers) - min(powers) <= _SAME and (is_single or len(set(others)) > 1):
            return _of(value), round(powers[0] * 24) / 24 if _is_fraction(powers[0]) else powers[0]
    return None


def _is_fraction(power: float) -> bool:
    """Whether a power is one of the usual ones, up to rounding."""
    return abs(power * 24 - round(power * 24)) < _SAME


# ----------------------------------------------------------------------------------------- which weights make up for it


def _carrier(
    place: int, reads: Sequence[Powers], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[float, dict[str, tuple[Tensor, ...]]] | None:
    """The fewest entries of weights that are read with a number wherever it is, in the same ratio, and never without:
    the power of theirs that makes up for one of the number's, and their positions; None where there are none."""
    site: Atom = frozenset({Part(f"{NUMBER}{place}", (), None, ())})
    with_site = [read for read in reads if site in read]
    if not with_site:
        return None
    found: list[tuple[int, int, float, dict[str, tuple[Tensor, ...]]]] = []
    for atom in with_site[0]:
        entries = None if any(p.tensor.startswith(NUMBER) for p in atom) else _positions(atom, shapes)
        ratio = None if entries is None else _ratio(site, atom, with_site)
        if entries is not None and ratio is not None and not _is_read_without(site, atom, reads):
            num = sum(math.prod(int(own.sum()) for own in positions) for positions in entries.values())
            found.append((num, len(found), ratio, entries))
    return min(found, key=lambda one: one[:2])[2:] if found else None


def _ratio(site: Atom, atom: Atom, reads: Sequence[Powers]) -> float | None:
    """The power of a number over that of an atom, where it is one wherever the number is read."""
    ratios = set()
    for read in reads:
        alike = [power for other, power in read.items() if _is_alike(other, atom)]
        touching = [other for other in read if other != site and overlap(other, atom)]
        if len(alike) != 1 or len(touching) != 1 or not alike[0]:
            return None
        ratios.add(read[site] / alike[0])
    return ratios.pop() if len(ratios) == 1 else None


def _is_alike(left: Atom, right: Atom) -> bool:
    """Whether two atoms are the same entries."""
    return left == right or {(p.tensor, places(p)) for p in left} == {(p.tensor, places(p)) for p in right}


def _is_read_without(site: Atom, atom: Atom, reads: Iterable[Powers]) -> bool:
    return any(site not in read and any(overlap(other, atom) for other in read) for read in reads)


def _positions(atom: Atom, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Tensor, ...]] | None:
    """The positions that an atom takes up along each dimension of its weights; None where they are no blocks."""
    found: dict[str, tuple[Tensor, ...]] = {}
    for tensor in dict.fromkeys(sorted(part.tensor for part in atom)):
        boxes = [places(part) for part in atom if part.tensor == tensor]
        unions = [frozenset[int]().union(*own) for own in zip(*boxes, strict=True)]
        whole = [box for box in boxes if list(box) == unions]
        differ = [d for d, union in enumerate(unions) if any(box[d] != union for box in boxes)]
        if not whole and len(differ) > 1:
            return None
        masks = [torch.zeros(size, dtype=torch.bool) for size in shapes[tensor]]
        for mask, union in zip(masks, unions, strict=True):
            mask[sorted(union)] = True
        found[tensor] = tuple(masks)
    return found

"""Steps that a config can describe: fields made smaller together, so that what is left is a part of the model.

Of every few fields the same fraction is taken: ``intermediate_size`` alone, ``hidden_size`` and ``num_attention_heads``
where their quotient is the size of a head. From the new values the constraints give the size of every axis. What comes
of it is a step if no axis grows and every constraint holds; the axes of all layers that one field describes are in one
step, and shrink by equal numbers.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from topiarist.graph.axis import Axis
from topiarist.graph.sizes import Constraint, Term, atoms_in, evaluate, paths_in, text
from topiarist.graph.sizing import Sizing, Step

_MOST_FIELDS = 3  # that change together
_MOST_FRACTIONS = 12  # tried of one set of fields


@dataclass(frozen=True, eq=False)
class Move:
    """A step and the fields that take it: how much each is lowered, and how often at most."""

    step: Step
    less: Mapping[str, int]
    most: int

    def sizes(self, times: int) -> dict[Axis, int]:
        """The sizes of the leaves after so many steps."""
        return {leaf: leaf.size - times * num for leaf, num in self.step.items()}

    def fields(self, times: int, fields: Mapping[str, int]) -> dict[str, int]:
        """The values of the fields after so many steps."""
        return {path: value - times * self.less.get(path, 0) for path, value in fields.items()}

    def times(self, sizes: Mapping[Axis, int]) -> int:
        """How often it was taken to come to these sizes."""
        leaf, num = next(iter(self.step.items()))
        return (leaf.size - sizes.get(leaf, leaf.size)) // num


Misses = Callable[[Mapping[Axis, int], Mapping[str, int]], str | None]


class _Conflict(Exception):  # noqa: N818 - no error: a way that does not lead on, and why
    pass


def described_moves(sizing: Sizing, fields: Mapping[str, int], misses: Misses) -> tuple[list[Move], dict[Axis, str]]:
    """The moves that changes of ``fields`` make, those of the fewest fields first, each axis in one at most.

    ``misses`` says of new sizes of leaves and values of fields why the model's class does not build the one from the
    other, or None if it does. Returned are the moves, and why the other leaves that the model holds stay.
    """
    search = _Search(sizing, fields, misses)
    driven = search.driven()
    moves: list[Move] = []
    reasons: dict[Axis, str] = {}
    for num in range(1, _MOST_FIELDS + 1):
        for paths in itertools.combinations(driven, num):
            if any(path in move.less for move in moves for path in paths):
                continue
            try:
                move = search.move(paths)
                if move is not None and not any(leaf in other.step for other in moves for leaf in move.step):
                    search.check_together([*moves, move])
                    moves.append(move)
            except _Conflict as conflict:
                for leaf in (leaf for path in paths for leaf in driven[path]):
                    reasons.setdefault(leaf, str(conflict))
    taken = {leaf for move in moves for leaf in move.step}
    left = [leaf for leaf in sizing.held if not leaf.pins and leaf not in taken]
    return moves, {leaf: reasons.get(leaf, "none of its fields sets this size") for leaf in left}


class _Search:
    """From values of fields to sizes of axes."""

    def __init__(self, sizing: Sizing, fields: Mapping[str, int], misses: Misses) -> None:
        self.sizing, self.fields, self.misses = sizing, fields, misses
        self.by_path: dict[str, list[Constraint]] = defaultdict(list)
        self.by_leaf: dict[Axis, list[Constraint]] = defaultdict(list)
        self.free: dict[int, list[Axis]] = {}
        for c in sizing.constraints:
            self.free[id(c)] = [a for a in sizing.leaves(c) if a in sizing.held and not a.pins and a.size > 1]
            for leaf in self.free[id(c)]:
                self.by_leaf[leaf].append(c)
            for path in dict.fromkeys(paths_in(c.expression)):
                self.by_path[path].append(c)

    def driven(self) -> dict[str, list[Axis]]:
        """The leaves that occur with each field in some constraint; fields that occur with none are left out."""
        found = {path: [a for c in self.by_path.get(path, ()) for a in self.free[id(c)]] for path in self.fields}
        return {path: list(dict.fromkeys(leaves)) for path, leaves in found.items() if leaves}

    def move(self, paths: Sequence[str]) -> Move | None:
        """The smallest move that takes the same fraction of all these fields; None where nothing follows.

        Raises:
            _Conflict: there is none; with the reason.
        """
        last: _Conflict | None = None
        for part in _divisors(math.gcd(*(self.fields[path] for path in paths)))[:_MOST_FRACTIONS]:
            less = {path: self.fields[path] // part for path in paths}
            try:
                move = self.attempt(less)
            except _Conflict as conflict:
                last = conflict
                continue
            if move is not None:
                self.check_builds(move)
            return move
        if last is not None:
            raise last
        return None

    def check_builds(self, move: Move) -> None:
        """Raise `_Conflict` where the class builds something else than what a move leaves."""
        for times in {1, move.most}:
            missed = self.misses(move.sizes(times), move.fields(times, self.fields))
            if missed is not None:
                raise _Conflict(missed)

    def attempt(self, less: Mapping[str, int]) -> Move | None:
        """The move that lowers fields so, if every constraint allows it."""
        sizes = self.followed({path: self.fields[path] - number for path, number in less.items()})
        step = {leaf: leaf.size - size for leaf, size in sizes.items() if size < leaf.size}
        if not step:
            return None
        whole = [(leaf.size, num) for leaf, num in step.items()] + [(self.fields[path], less[path]) for path in less]
        move = Move(step, less, min((size - 1) // num for size, num in whole))
        if not move.most:
            raise _Conflict(f"with less {' and '.join(less)} nothing is left")
        for times in {1, min(2, move.most), move.most}:
            self.check(move.sizes(times), move.fields(times, self.fields), less)
        return move

    def check(self, sizes: Mapping[Axis, int], fields: Mapping[str, int], changed: Iterable[str]) -> None:
        """Raise `_Conflict` where a constraint does not hold."""
        broken = self.sizing.attributes(sizes, fields, changed)[1]
        if broken:
            raise self.conflict(broken[0], changed)

    def check_together(self, moves: Sequence[Move]) -> None:
        """Raise `_Conflict` where moves that are possible alone are not possible at once."""
        for part in (1, 2):
            sizes: dict[Axis, int] = {}
            fields = dict(self.fields)
            for move in moves:
                sizes.update(move.sizes(move.most // part))
                fields = move.fields(move.most // part, fields)
            self.check(sizes, fields, [path for move in moves for path in move.less])

    def followed(self, changed: Mapping[str, int]) -> dict[Axis, int]:
        """The sizes of all leaves that the new values decide, one at a time."""
        known = {**self.sizing.integers, **self.fields, **changed}
        sizes: dict[Axis, int] = {}
        queue = [c for path in changed for c in self.by_path[path]]
        asked: set[Axis] = set()
        while queue:
            c = queue.pop()
            unknown = [leaf for leaf in self.free[id(c)] if leaf not in sizes]
            if not all(path in self.fields for path in paths_in(c.expression)):
                continue
            if len(unknown) > 1:  # it is looked at again when others have said what one of them is
                queue.extend(other for leaf in unknown if leaf not in asked for other in self.by_leaf[leaf])
                asked.update(unknown)
            elif not unknown:
                self.check_one(c, sizes, known, changed)
            elif not self.is_on_both_sides(unknown[0], c):
                size = self.sizing.size_that_meets(c, unknown[0], sizes, known)
                if size is None or not 1 <= size <= unknown[0].size:
                    raise self.conflict(c, changed)
                sizes[unknown[0]] = size
                queue.extend(self.by_leaf[unknown[0]])
        return sizes

    def is_on_both_sides(self, leaf: Axis, c: Constraint) -> bool:
        """Whether a constraint computes the size of an axis from that of a part of it."""
        said = {part for a in atoms_in(c.expression) if isinstance(a, Axis) for part in self.sizing.graph.leaves(a)}
        return leaf in said and leaf in set(self.sizing.graph.leaves(c.axis))

    def check_one(
        self, c: Constraint, sizes: Mapping[Axis, int], known: Mapping[str, int], changed: Iterable[str]
    ) -> None:
        """Raise `_Conflict` where a constraint whose every size is known does not hold."""

        def measure(axis: Axis) -> int:
            return self.sizing.graph.measure(axis, sizes)

        if evaluate(c.expression, known, measure) != measure(c.axis):
            raise self.conflict(c, changed)

    def conflict(self, c: Constraint, changed: Iterable[str]) -> _Conflict:
        """What a constraint has against a change, in words."""
        where = f"with less {' and '.join(changed)}"
        if isinstance(c.expression, Term) and not self.sizing.graph.find(c.axis).size:
            return _Conflict(
                f"{where}, {text(c.expression.left)} == {text(c.expression.right)} no longer, at {c.where}"
            )
        pins = [next(iter(leaf.pins)) for leaf in self.sizing.leaves(c) if leaf.pins and leaf.size > 1]
        stays = f"the size of an axis that stays ({pins[0]})" if pins else "no size that a part of the model has"
        return _Conflict(f"{where}, {text(c.expression)} is {stays}, at {c.where}")


def _divisors(number: int) -> list[int]:
    """The divisors of a number from itself down to 2."""
    return [part for part in range(number, 1, -1) if number % part == 0]

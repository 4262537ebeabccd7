"""Which axes can shrink, alone or together: the sizes that the model's code computes, solved for what must follow.

Each axis is tried one index smaller. Attributes take the values that the constraints ask for; where one is left unmet,
another axis in it is made to follow (``dim == num_heads · head_dim``: one head less takes ``head_dim`` indices of the
axis ``dim`` with it, and a head of every other block on the same stream). What comes of it is a *step*: how many
indices each axis loses together. An axis for which no step is found is pinned by the constraint that stops it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from topiarist.graph.axis import Axis, AxisGraph
from topiarist.graph.sizes import Attribute, Constraint, Expression, Term, atoms_in, evaluate, paths_in, solve

Step = dict[Axis, int]  # leaf → how many of its indices go together with those of the others
_PATIENCE = 200  # combinations tried for one axis
_STRIDES = (1, 2, 3, 4, 6, 8)  # of its indices tried at a time: half a head, say, when there are two halves


class Sizing:
    """The constraints between sizes, attributes and axes of one model."""

    def __init__(
        self, graph: AxisGraph, constraints: Sequence[Constraint], integers: Mapping[str, int], held: Iterable[Axis]
    ) -> None:
        self.graph = graph
        self.integers = dict(integers)
        self.held = {leaf for axis in held for leaf in graph.leaves(axis)}
        self.constraints = self._valid(constraints)
        self._leaves_of = {id(c): self.leaves(c) for c in self.constraints}
        self._by_leaf: dict[Axis, list[Constraint]] = defaultdict(list)
        self._by_path: dict[str, list[Constraint]] = defaultdict(list)
        for c in self.constraints:
            for leaf in self._leaves_of[id(c)]:
                self._by_leaf[leaf].append(c)
            for path in paths_in(c.expression):
                self._by_path[path].append(c)

    def _valid(self, constraints: Sequence[Constraint]) -> tuple[Constraint, ...]:
        """Each constraint once, and only those that hold for the model as it is.

        An axis that no tensor of the model holds is made anew in each call, of whatever size the code computes.
        """
        seen: dict[tuple[object, ...], Constraint] = {}
        for c in constraints:
            made_anew = all(leaf not in self.held and leaf.size and not leaf.pins for leaf in self.graph.leaves(c.axis))
            if (
                not made_anew
                and evaluate(c.expression, self.integers, self._measure({})) == self.graph.find(c.axis).size
            ):
                seen.setdefault((_key(c.expression), id(self.graph.find(c.axis)), c.where), c)
        return tuple(seen.values())

    def _measure(self, sizes: Mapping[Axis, int]) -> Callable[[Axis], int]:
        return lambda axis: self.graph.measure(axis, sizes)

    def leaves(self, c: Constraint) -> dict[Axis, None]:
        """The leaves that a constraint speaks of, in order."""
        axes = [c.axis, *(atom for atom in atoms_in(c.expression) if isinstance(atom, Axis))]
        return {leaf: None for axis in axes for leaf in self.graph.leaves(axis)}

    # ------------------------------------------------------------------ attributes that follow

    def attributes(
        self, sizes: Mapping[Axis, int], given: Mapping[str, int] | None = None, changed: Iterable[str] = ()
    ) -> tuple[dict[str, int], list[Constraint]]:
        """The attributes that follow when leaves have these sizes, and the constraints that nothing meets.

        ``given`` attributes have these values, ``changed`` ones among them others than in the model.
        """
        known, broken = self._resolve(sizes, self._touched(sizes, changed), given)
        return {path: value for path, value in known.items() if value != self.integers[path]}, broken

    def _touched(self, leaves: Iterable[Axis], changed: Iterable[str] = ()) -> list[Constraint]:
        """The constraints that hold one of the leaves or changed attributes, and those that share an attribute with
        them, in order."""
        first = {id(c): c for leaf in leaves for c in self._by_leaf.get(leaf, ())}
        first.update((id(c), c) for path in changed for c in self._by_path.get(path, ()))
        paths = {path: None for c in first.values() for path in paths_in(c.expression)}
        return list({**first, **{id(c): c for path in paths for c in self._by_path[path]}}.values())

    def _resolve(
        self, sizes: Mapping[Axis, int], constraints: Sequence[Constraint], given: Mapping[str, int] | None = None
    ) -> tuple[dict[str, int], list[Constraint]]:
        """Solve for attributes that are not ``given``, one at a time, those that describe an axis alone first."""
        known = dict(given or {})
        broken: list[Constraint] = []
        measure = self._measure(sizes)
        pending = sorted(constraints, key=lambda c: not isinstance(c.expression, Attribute))
        while pending:
            later: list[Constraint] = []
            for c in pending:
                unknown = {path for path in paths_in(c.expression) if path not in known}
                if len(unknown) > 1:
                    later.append(c)
                    continue
                if unknown:
                    known.update(self._solved(c, unknown.pop(), known, measure))
                if evaluate(c.expression, known, measure) != measure(c.axis):
                    broken.append(c)
            if len(later) == len(pending):  # several unknowns everywhere: all but the largest stay as they are
                unknown = {path for path in paths_in(later[0].expression) if path not in known}
                unknown.remove(max(unknown, key=lambda path: (self.integers[path], path)))
                known.update({path: self.integers[path] for path in unknown})
            pending = later
        return known, broken

    def _solved(
        self, c: Constraint, path: str, known: Mapping[str, int], measure: Callable[[Axis], int]
    ) -> dict[str, int]:
        found = solve(c.expression, measure(c.axis), lambda atom: atom == Attribute(path), known, measure)
        return {path: self.integers[path] if found is None else found}

    # ------------------------------------------------------------------ steps

    def steps(self) -> tuple[list[Step], dict[Axis, list[Constraint]]]:
        """The steps of more than one index, heads first, and the leaves that cannot shrink with what stops them."""
        found: dict[Axis, Step] = {}
        stopped: dict[Axis, list[Constraint]] = {}
        for leaf in sorted(self._by_leaf, key=lambda leaf: "head" not in leaf.roles):
            if leaf in found or leaf.pins or leaf not in self.held:
                continue
            step, broken = self._step(leaf, found)
            if step is None:
                stopped[leaf] = broken
            else:
                found.update(dict.fromkeys(step, step))
        stopped = {leaf: broken for leaf, broken in stopped.items() if leaf not in found}
        while conflict := self._conflict(found):
            leaf, broken = conflict
            stopped.update(dict.fromkeys(found[leaf], broken))
            found = {other: step for other, step in found.items() if leaf not in step}
        several = {id(step): step for step in found.values() if list(step.values()) != [1]}
        return list(several.values()), stopped

    def _conflict(self, found: Mapping[Axis, Step]) -> tuple[Axis, list[Constraint]] | None:
        """Take half of everything at once: an axis to give up and the constraints it breaks, or None where all hold."""
        sizes: dict[Axis, int] = {}
        for step in {id(s): s for s in found.values()}.values():
            times = min((leaf.size - 1) // num for leaf, num in step.items()) // 2 or 1
            sizes.update({leaf: leaf.size - times * num for leaf, num in step.items()})
        broken = self._resolve(sizes, self._touched(sizes))[1]
        if not broken:
            return None
        at_fault = [leaf for leaf in found if leaf in self._leaves_of[id(broken[0])]]
        return (at_fault[-1], broken[:1]) if at_fault else None

    def _step(self, leaf: Axis, taken: Mapping[Axis, Step]) -> tuple[Step | None, list[Constraint]]:
        """The smallest step that takes an index of ``leaf``, or the constraints that a lone cut leaves unmet."""
        alone = {leaf: leaf.size - 1}
        broken = self._resolve(alone, self._touched(alone))[1]
        if not broken:
            return {leaf: 1}, []
        patience = [_PATIENCE]
        for num in (n for n in _STRIDES if n < leaf.size):
            sizes = self._completed({leaf: leaf.size - num}, taken, patience)
            step = {} if sizes is None else {member: member.size - size for member, size in sizes.items()}
            if step and self._repeats(step):
                return step, []
        return None, broken

    def _completed(
        self, sizes: dict[Axis, int], taken: Mapping[Axis, Step], patience: list[int]
    ) -> dict[Axis, int] | None:
        """Sizes that meet every constraint, with further leaves made to follow that no step has taken, or None."""
        patience[0] -= 1
        known, broken = self._resolve(sizes, self._touched(sizes))
        if not broken:
            return sizes
        fixed, last = {**sizes, **taken}, next(reversed(sizes))
        if any(last in self._leaves_of[id(c)] and self._is_hopeless(c, fixed, sizes, known) for c in broken):
            return None
        for c in broken:
            for leaf in self._followers(c, fixed):
                size = self._smaller(c, leaf, sizes, known)
                if size is not None and patience[0] > 0:
                    found = self._completed({**sizes, leaf: size}, taken, patience)
                    if found is not None:
                        return found
        return None

    def _is_hopeless(
        self, c: Constraint, fixed: Mapping[Axis, object], sizes: Mapping[Axis, int], known: Mapping[str, int]
    ) -> bool:
        """Whether nothing that may still follow can meet ``c``: it holds one such leaf at most, and no attribute."""
        free = self._followers(c, fixed)
        return (
            len(free) <= 1
            and not any(True for _ in paths_in(c.expression))
            and not any(self._smaller(c, leaf, sizes, known) for leaf in free)
        )

    def _followers(self, c: Constraint, fixed: Mapping[Axis, object]) -> list[Axis]:
        """The leaves of a constraint that could follow, those of its axis first."""
        own = list(self.graph.leaves(c.axis))
        found = dict.fromkeys([*own, *self._leaves_of[id(c)]])
        return [leaf for leaf in found if leaf in self.held and leaf not in fixed and not leaf.pins and leaf.size > 1]

    def _smaller(self, c: Constraint, leaf: Axis, sizes: Mapping[Axis, int], known: Mapping[str, int]) -> int | None:
        """The smaller size of ``leaf`` that meets ``c``, or None."""
        size = self.size_that_meets(c, leaf, sizes, {**self.integers, **known})
        return size if size is not None and 1 <= size < leaf.size else None

    def size_that_meets(
        self, c: Constraint, leaf: Axis, sizes: Mapping[Axis, int], attributes: Mapping[str, int]
    ) -> int | None:
        """The size of ``leaf`` that meets ``c``, or None."""
        measure = self._measure(sizes)
        holds = [a for a in atoms_in(c.expression) if isinstance(a, Axis) and leaf in set(self.graph.leaves(a))]
        if leaf in set(self.graph.leaves(c.axis)):
            if holds:
                return self._size_on_both_sides(c, leaf, sizes, attributes)
            axis, wanted = c.axis, evaluate(c.expression, attributes, measure)
        else:
            axis = holds[0]
            found = solve(c.expression, measure(c.axis), lambda atom: atom is axis, attributes, measure)
            if found is None:
                return None
            wanted = found
        nothing, one = (self.graph.measure(axis, {**sizes, leaf: n}) for n in (0, 1))
        size, rest = divmod(wanted - nothing, one - nothing)
        return size if rest == 0 else None

    def _size_on_both_sides(
        self, c: Constraint, leaf: Axis, sizes: Mapping[Axis, int], attributes: Mapping[str, int]
    ) -> int | None:
        """The size of ``leaf`` that meets ``c``, which holds it twice: where a line through two points crosses zero."""

        def gap(size: int) -> int:
            measure = self._measure({**sizes, leaf: size})
            return evaluate(c.expression, attributes, measure) - measure(c.axis)

        first, last = gap(1), gap(leaf.size)
        if first == last:
            return None
        root = round(leaf.size - last * (leaf.size - 1) / (last - first))
        return next((n for n in (root, root - 1, root + 1) if 1 <= n < leaf.size and gap(n) == 0), None)

    def _repeats(self, step: Step) -> bool:
        """Whether two steps, and as many as leave something, are steps as well."""
        most = min((leaf.size - 1) // num for leaf, num in step.items())
        for times in {2, most} if most >= 2 else ():
            sizes = {leaf: leaf.size - times * num for leaf, num in step.items()}
            if self._resolve(sizes, self._touched(sizes))[1]:
                return False
        return most >= 1


def _key(expression: Expression) -> object:
    if isinstance(expression, Term):
        return (expression.operator, _key(expression.left), _key(expression.right))
    return id(expression) if isinstance(expression, Axis) else expression

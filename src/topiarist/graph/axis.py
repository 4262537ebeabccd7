"""The algebra of axes: index sets that tensor dimensions share, refined into products and sums.

A dimension is a leaf, a **product** (row-major, as a reshape splits it: ``heads × head_dim``) or a **sum** (a
concatenation: ``q + k + v``). Equal dimensions are *unified* (union-find), and refining one refines every dimension
that holds it. Two refinements are reconciled by their common refinement; where none exists both are pinned, with
that as the reason. Everything here speaks of whole axes: cost does not grow with their size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from topiarist.graph.reasons import Kind, Reason

Form = Literal["leaf", "product", "sum"]


class Axis:
    """One index set; compare with `AxisGraph.find`, since unified axes are different objects of one class."""

    __slots__ = ("birth", "form", "inexact", "parent", "parts", "pins", "roles", "size")

    def __init__(self, size: int, form: Form = "leaf", parts: tuple[Axis, ...] = ()) -> None:
        self.size = size
        self.form: Form = form
        self.parts = parts
        self.parent: Axis | None = None
        self.pins: dict[Reason, None] = {}  # in order of arrival
        self.inexact: dict[Reason, None] = {}
        self.roles: set[str] = set()
        self.birth = -1  # its place among the leaves of a graph; a class is as old as its oldest leaf

    def __repr__(self) -> str:
        if self.parent is not None:
            return repr(self.parent)
        if self.form == "leaf":
            return f"{self.size}"
        return "(" + ("·" if self.form == "product" else "+").join(map(repr, self.parts)) + ")"


def nowhere() -> tuple[str, str]:
    """No source line and no module: no model runs."""
    return "", ""


class AxisGraph:
    """Makes axes and keeps their classes.

    Example:
        >>> g = AxisGraph()
        >>> qkv = g.leaf(24)
        >>> three, heads, dim = g.split(qkv, [3, 2, 4])
        >>> q, k, v = g.cut(qkv, [8, 8, 8])
        >>> g.find(g.split(q, [2, 4])[0]) is g.find(heads)
        True
    """

    def __init__(self, here: Callable[[], tuple[str, str]] = nowhere) -> None:
        self.here = here  # the source line and the module that run at the moment, for reasons
        self.one = Axis(1)
        self.one.pins[Reason("it has one index only", "single")] = None
        self._made: list[Axis] = []
        self.least: dict[Axis, int] = {}  # leaves of which so many must stay
        self.parts: list[Axis] = []  # what divisions into more than one part have given, in order
        self.num_changes = 0  # to what is known of axes that were there before
        self._unifying = False

    def find(self, axis: Axis) -> Axis:
        """The representative of the class of ``axis``."""
        root = axis
        while root.parent is not None:
            root = root.parent
        while axis.parent is not None:
            axis.parent, axis = root, axis.parent
        return root

    def leaf(self, size: int) -> Axis:
        """A new axis of its own; all axes of size 1 are one, since they cannot shrink; empty ones are of no age."""
        if size == 1:
            return self.one
        axis = Axis(size)
        if size and not self._unifying:
            axis.birth = len(self._made)
            self._made.append(axis)
        return axis

    @property
    def age(self) -> int:
        """How many leaves there have been so far; see `younger`."""
        return len(self._made)

    def younger(self, age: int) -> list[Axis]:
        """The leaves made since `age` by a division or from nothing, and not unified with an older one since."""
        found = {leaf: None for made in self._made[age:] for leaf in self.leaves(made) if leaf.birth >= age}
        return list(found)

    def product(self, axes: Sequence[Axis]) -> Axis:
        """The row-major product of axes, the first one varying slowest."""
        parts: list[Axis] = []
        for axis in map(self.find, axes):
            parts.extend(self._parts(axis) if axis.form == "product" else [axis])
        parts = [p for p in parts if p.size != 1]
        if len(parts) <= 1:
            return parts[0] if parts else self.one
        return Axis(math.prod(p.size for p in parts), "product", tuple(parts))

    def sum(self, axes: Sequence[Axis]) -> Axis:
        """The concatenation of axes."""
        parts: list[Axis] = []
        for axis in map(self.find, axes):
            parts.extend(self._parts(axis) if axis.form == "sum" else [axis])
        parts = [p for p in parts if p.size]
        if len(parts) == 1:
            return parts[0]
        return Axis(sum(p.size for p in parts), "sum", tuple(parts))

    def _parts(self, axis: Axis) -> list[Axis]:
        """The parts of a composite, flattened where a part has since been refined in the same way."""
        flat: list[Axis] = []
        for part in map(self.find, axis.parts):
            flat.extend(self._parts(part) if part.form == axis.form else [part])
        return flat

    def leaves(self, axis: Axis) -> Iterator[Axis]:
        """Every leaf below ``axis``, in order, as often as it occurs."""
        axis = self.find(axis)
        if axis.form == "leaf":
            yield axis
        else:
            for part in axis.parts:
                yield from self.leaves(part)

    def pin(self, axis: Axis, reason: str, kind: Kind = "order") -> None:
        """Forbid ``axis`` (every leaf below it) to shrink, now and after any refinement."""
        found = self._reason(reason, kind)
        for leaf in self.leaves(axis):
            self.num_changes += found not in leaf.pins
            leaf.pins[found] = None

    def mark_inexact(self, axis: Axis, reason: str) -> None:
        """Note that removing an index of ``axis`` cannot equal zeroing it, and which operator makes it so."""
        found = self._reason(reason, "inexact")
        for leaf in self.leaves(axis):
            self.num_changes += found not in leaf.inexact
            leaf.inexact[found] = None

    def _reason(self, reason: str, kind: Kind) -> Reason:
        return reason if isinstance(reason, Reason) else Reason(reason, kind, *self.here())

    def mark_role(self, axis: Axis, role: str) -> None:
        """Note what ``axis`` is to the model, such as ``"head"``."""
        for leaf in self.leaves(axis):
            self.num_changes += role not in leaf.roles
            leaf.roles.add(role)

    # ------------------------------------------------------------------ unification

    def unify(self, a: Axis, b: Axis, why: str) -> Axis:
        """Make ``a`` and ``b`` one axis; where their refinements do not nest, pin both with ``why`` in the reason."""
        a, b = self.find(a), self.find(b)
        if a is b:
            return a
        self.num_changes += 1
        if a.size == b.size:
            self._unifying, before = True, self._unifying
            merged = self._merge(a, b)
            self._unifying = before
            if merged:
                return self.find(a)
        reason = f"two ways of dividing it do not nest ({a!r} against {b!r}) in {why}"
        self.pin(a, reason, "division")
        self.pin(b, reason, "division")
        return a

    def _merge(self, a: Axis, b: Axis) -> bool:
        a, b = self.find(a), self.find(b)
        if a is b:
            return True
        if a.form != "leaf" and b.form == "leaf":
            a, b = b, a
        if a.form == "leaf":
            self._become(a, b)
            return True
        if a.form != b.form:
            return self._merge_product_and_sum(*((a, b) if a.form == "product" else (b, a)))
        sizes = self._common_refinement(a, b)
        if sizes is None:
            return False
        refine = self._split if a.form == "product" else self._cut
        left, right = refine(a, sizes), refine(b, sizes)
        if left is None or right is None or not self._merge_all(left, right):
            return False
        a, b = self.find(a), self.find(b)
        if a is not b:
            a.parent = b
        return True

    def _merge_all(self, left: Sequence[Axis], right: Sequence[Axis]) -> bool:
        """Merge pairwise; whether all could. A pair that cannot does not stop those after it."""
        merged = [self._merge(a, b) for a, b in zip(left, right, strict=True)]
        return all(merged)

    def _common_refinement(self, a: Axis, b: Axis) -> list[int] | None:
        """The sizes of the coarsest division that refines both, or None where there is none."""
        product = a.form == "product"
        marks: set[int] = set()
        for axis in (a, b):
            mark = 1 if product else 0
            for part in self._parts(axis):
                mark = mark * part.size if product else mark + part.size
                marks.add(mark)
        ordered = sorted(marks)
        if not product:
            return [high - low for low, high in zip([0, *ordered], ordered, strict=False)]
        steps = list(zip([1, *ordered], ordered, strict=False))
        return [high // low for low, high in steps] if all(high % low == 0 for low, high in steps) else None

    def _merge_product_and_sum(self, product: Axis, total: Axis) -> bool:
        lead, *trail = self._parts(product)
        divided = self._split_sum(total, [lead.size, *(t.size for t in trail)])
        if divided is None:
            return False
        return self._merge_all(divided, [lead, *trail])

    def _become(self, leaf: Axis, other: Axis) -> None:
        """Let ``leaf`` stand for ``other``; what is known of the leaf holds for everything below ``other``."""
        leaf.parent = other
        if other.form == "leaf":
            other.birth = min(other.birth, leaf.birth)
        for target in self.leaves(other):
            target.pins.update(leaf.pins)
            target.inexact.update(leaf.inexact)
            target.roles.update(leaf.roles)

    def _refine(self, leaf: Axis, form: Form, parts: tuple[Axis, ...]) -> None:
        self.num_changes += 1
        leaf.form, leaf.parts = form, parts
        for part in parts:
            if part is not self.one:
                part.pins.update(leaf.pins)
                part.inexact.update(leaf.inexact)
                part.roles.update(leaf.roles)

    # ------------------------------------------------------------------ division

    def split(self, axis: Axis, sizes: Sequence[int], why: str = "a reshape") -> list[Axis]:
        """Divide ``axis`` into row-major factors of the given sizes, as a reshape does."""
        return self._divide(axis, sizes, self._split, why)

    def cut(self, axis: Axis, sizes: Sequence[int], why: str = "a split") -> list[Axis]:
        """Divide ``axis`` into consecutive parts of the given sizes, as a split does."""
        return self._divide(axis, sizes, self._cut, why)

    def _divide(
        self, axis: Axis, sizes: Sequence[int], how: Callable[[Axis, list[int]], list[Axis] | None], why: str
    ) -> list[Axis]:
        divided = how(axis, list(sizes))
        if divided is not None:
            if sum(size > 1 for size in sizes) > 1:
                self.parts.extend(divided)
            return divided
        reason = f"{why} divides it as {list(sizes)}, which does not nest with {axis!r}"
        self.pin(axis, reason, "division")
        fresh = [self.leaf(size) for size in sizes]
        for part in fresh:
            self.pin(part, reason, "division")
        return fresh

    def _split(self, axis: Axis, sizes: list[int]) -> list[Axis] | None:
        real = [s for s in sizes if s != 1]
        if len(real) != len(sizes):
            if len(real) == 1:
                return [self.one if s == 1 else self.find(axis) for s in sizes]
            inner = iter(self._split(axis, real) or []) if real else iter(())
            parts = [self.one if s == 1 else next(inner, None) for s in sizes]
            return None if None in parts else [p for p in parts if p is not None]
        axis = self.find(axis)
        if len(sizes) == 1:
            return [axis]
        if axis.form == "leaf":
            self._refine(axis, "product", tuple(self.leaf(s) for s in sizes))
            return list(axis.parts)
        return self._split_sum(axis, sizes) if axis.form == "sum" else self._split_product(axis, sizes)

    def _split_product(self, axis: Axis, sizes: list[int]) -> list[Axis] | None:
        parts = self._parts(axis)[::-1]
        result: list[Axis] = []
        for wanted in sizes:
            taken: list[Axis] = []
            while wanted > 1:
                part = parts.pop()
                if wanted % part.size == 0:
                    taken.append(part)
                    wanted //= part.size
                elif part.size % wanted == 0:
                    halves = self._split(part, [wanted, part.size // wanted])
                    if halves is None:
                        return None
                    taken.append(halves[0])
                    parts.append(halves[1])
                    wanted = 1
                else:
                    return None
            result.append(self.product(taken))
        return result

    def _split_sum(self, axis: Axis, sizes: list[int]) -> list[Axis] | None:
        """A sum reshaped to (lead, *trail): possible where every part holds whole rows; rows are then one axis."""
        row = math.prod(sizes[1:])
        parts = self._parts(axis)
        if any(part.size % row for part in parts):
            return None
        rows = [self._split(part, [part.size // row, *sizes[1:]]) for part in parts]
        if any(r is None for r in rows):
            return None
        divided = [r for r in rows if r is not None]
        self.num_changes += 1
        for other in divided[1:]:
            if not self._merge_all(divided[0][1:], other[1:]):
                return None
        result = [self.sum([r[0] for r in divided]), *divided[0][1:]]
        axis = self.find(axis)
        if axis.form == "sum":
            axis.parent = self.product(result)
        return result

    def _cut(self, axis: Axis, sizes: list[int]) -> list[Axis] | None:
        real = [s for s in sizes if s]
        if len(real) != len(sizes):
            pieces = self._cut(axis, real)
            inner = iter(pieces or ())
            return None if pieces is None else [next(inner) if s else Axis(0) for s in sizes]
        axis = self.find(axis)
        if len(sizes) == 1:
            return [axis]
        if axis.form == "leaf":
            self._refine(axis, "sum", tuple(self.leaf(s) for s in sizes))
            return list(axis.parts)
        return self._cut_product(axis, sizes) if axis.form == "product" else self._cut_sum(axis, sizes)

    def _cut_product(self, axis: Axis, sizes: list[int]) -> list[Axis] | None:
        lead, *trail = self._parts(axis)
        row = axis.size // lead.size
        if any(s % row for s in sizes):
            return None
        leads = self._cut(lead, [s // row for s in sizes])
        return None if leads is None else [self.product([part, *trail]) for part in leads]

    def _cut_sum(self, axis: Axis, sizes: list[int]) -> list[Axis] | None:
        parts = self._parts(axis)[::-1]
        result: list[Axis] = []
        for wanted in sizes:
            taken: list[Axis] = []
            while wanted > 0:
                part = parts.pop()
                if part.size > wanted:
                    pieces = self._cut(part, [wanted, part.size - wanted])
                    if pieces is None:
                        return None
                    part = pieces[0]
                    parts.append(pieces[1])
                taken.append(part)
                wanted -= part.size
            result.append(self.sum(taken))
        return result

    # ------------------------------------------------------------------ reading

    def measure(self, axis: Axis, sizes: Mapping[Axis, int]) -> int:
        """The size of ``axis`` once its leaves have the given sizes (those not named keep theirs)."""
        axis = self.find(axis)
        if axis.form == "leaf":
            return sizes.get(axis, axis.size)
        measured = [self.measure(part, sizes) for part in axis.parts]
        return math.prod(measured) if axis.form == "product" else sum(measured)

    def measuring(self, sizes: Mapping[Axis, int]) -> Callable[[Axis], int]:
        """`measure` with these sizes, for many axes: what is asked again is known."""
        return functools.cache(lambda axis: self.measure(axis, sizes))

    def removed(self, axis: Axis, removed: Mapping[Axis, Tensor]) -> Tensor:
        """Which positions of ``axis`` go when its leaves lose indices: bool of shape ``(size,)``."""
        axis = self.find(axis)
        if axis.form == "leaf":
            gone = removed.get(axis)
            return torch.zeros(axis.size, dtype=torch.bool) if gone is None else gone
        parts = [self.removed(part, removed) for part in axis.parts]
        if axis.form == "sum":
            return torch.cat(parts)
        result = parts[0]
        for part in parts[1:]:
            result = (result[:, None] | part[None, :]).flatten()
        return result

    def occurrences(self, axis: Axis, leaf: Axis) -> list[Tensor]:
        """Where the indices of ``leaf`` lie along ``axis``: per occurrence, int64 ``(size,)``, −1 elsewhere."""
        axis, leaf = self.find(axis), self.find(leaf)
        if axis is leaf:
            return [torch.arange(axis.size)]
        if axis.form == "leaf":
            return []
        found: list[Tensor] = []
        before = 1 if axis.form == "product" else 0
        for part in axis.parts:
            size = self.find(part).size
            for index in self.occurrences(part, leaf):
                if axis.form == "product":
                    found.append(index.repeat_interleave(axis.size // (before * size)).repeat(before))
                else:
                    whole = torch.full((axis.size,), -1)
                    whole[before : before + size] = index
                    found.append(whole)
            before = before * size if axis.form == "product" else before + size
        return found

"""The result of a trace: every axis with all it ties, whether it may shrink, and what the model costs without it."""

from __future__ import annotations

import fnmatch
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from topiarist.errors import InputError, nearest
from topiarist.graph.axis import Axis
from topiarist.graph.sizes import Attribute, Constraint, axes_in, evaluate, paths_in, solve
from topiarist.plan import Member, Slice

if TYPE_CHECKING:
    from topiarist.graph.trace import Trace


@dataclass(frozen=True, eq=False)
class TensorInfo:
    """A tensor of the model: its axes, its kind (parameter, buffer, attribute), bytes per element, and its twin."""

    axes: tuple[Axis, ...]
    kind: str
    itemsize: int
    tied_to: str | None = None


@dataclass(frozen=True, eq=False)
class AxisInfo:
    """One axis: its name (``"fc1.weight:0"``: tensor and dimension where it first lives), its size, the tensors it
    ties, the layer that carries it, and why it may not shrink (``pins``) or not exactly (``inexact``)."""

    name: str
    leaf: Axis
    size: int
    members: tuple[Member, ...]
    layer: str
    kind: str
    pins: tuple[str, ...]
    inexact: tuple[str, ...]
    is_head: bool


class Axes:
    """The axes of a model, as `topiarist.trace` infers them."""

    def __init__(
        self,
        model: nn.Module,
        trace: Trace,
        tensors: Mapping[str, TensorInfo],
        integers: Mapping[str, int],
        training_error: Exception | None,
    ) -> None:
        self.graph = trace.graph
        self.costs = tuple(trace.costs)
        self.tensors = dict(tensors)
        self.integers = dict(integers)
        self.unknown_operators = dict(trace.unknown)
        self.training_error = training_error
        self.outputs = {name: tuple(axes) for name, axes in trace.outputs.items()}
        self.modules = {name: type(module).__name__ for name, module in model.named_modules()}
        self._values = list(trace.values)
        self.constraints = self._valid(trace.constraints)
        self._pin_unused(trace.used)
        self._pin_values()
        self._pin_unsolvable()
        self.axes = tuple(self._collect())
        self._by_name = {axis.name: axis for axis in self.axes}

    # ------------------------------------------------------------------ what the user asks

    @property
    def free(self) -> list[str]:
        """The names of the axes that may shrink."""
        return [axis.name for axis in self.axes if not axis.pins]

    def __getitem__(self, name: str) -> AxisInfo:
        if name not in self._by_name:
            raise InputError(f"there is no axis {name!r} ({nearest(name, self._by_name)})")
        return self._by_name[name]

    def summary(self) -> str:
        """A table of every axis, one a line; see `topiarist.graph.explain.summary`."""
        from topiarist.graph.explain import summary

        return summary(self)

    def explain(self, name: str) -> str:
        """What an axis, a tensor or a module ties and why it is pinned; see `topiarist.graph.explain.explain`."""
        from topiarist.graph.explain import explain

        return explain(self, name)

    def kept_by(self, keep: Iterable[str]) -> set[Axis]:
        """The leaves that stay whole: those in what the modules matching ``keep`` (fnmatch patterns) return.

        Raises:
            InputError: a pattern matches no module.
        """
        kept: set[Axis] = set()
        for pattern in keep:
            matched = fnmatch.filter(self.modules, pattern)
            if not matched:
                raise InputError(f"keep={pattern!r} matches no module ({nearest(pattern, self.modules)})")
            for module in matched:
                for axis in self.outputs.get(module, ()):
                    kept.update(self.graph.leaves(axis))
        return kept

    # ------------------------------------------------------------------ consequences of a cut

    def slices(self, removed: Mapping[str, Tensor]) -> dict[str, tuple[Slice, ...]]:
        """Which positions leave which tensor when the named axes lose indices (bool of shape ``(size,)`` each)."""
        by_leaf = {self[name].leaf: gone for name, gone in removed.items() if bool(gone.any())}
        result: dict[str, tuple[Slice, ...]] = {}
        for name, info in self.tensors.items():
            pieces = []
            for dim, axis in enumerate(info.axes):
                if any(leaf in by_leaf for leaf in self.graph.leaves(axis)):
                    pieces.append(Slice(dim, self.graph.removed(axis, by_leaf)))
            if pieces:
                result[name] = tuple(pieces)
        return result

    def sizes(self, removed: Mapping[str, Tensor]) -> dict[Axis, int]:
        """The sizes of the leaves after a cut."""
        return {self[name].leaf: self[name].size - int(gone.sum()) for name, gone in removed.items()}

    def attributes(self, removed: Mapping[str, Tensor]) -> tuple[dict[str, int], list[Constraint]]:
        """The integer attributes that follow a cut, and the constraints that no attribute can meet."""
        new, broken = self._resolve(self.sizes(removed), self.constraints)
        return {path: value for path, value in new.items() if value != self.integers[path]}, broken

    def num_params(self, sizes: Mapping[Axis, int] | None = None) -> int:
        """Parameters with the given leaf sizes; tied tensors count once."""
        return self._count(sizes or {}, lambda info: info.kind == "parameter", lambda info: 1)

    def num_bytes(self, sizes: Mapping[Axis, int] | None = None) -> int:
        """Bytes of parameters and buffers with the given leaf sizes; tied tensors count once."""
        return self._count(sizes or {}, lambda info: info.kind != "attribute", lambda info: info.itemsize)

    def _count(self, sizes, wanted, weight) -> int:  # type: ignore[no-untyped-def]
        total = 0
        for info in self.tensors.values():
            if info.tied_to is None and wanted(info):
                total += weight(info) * math.prod(self.graph.measure(axis, sizes) for axis in info.axes)
        return total

    def num_macs(self, sizes: Mapping[Axis, int] | None = None, density: Mapping[str, float] | None = None) -> float:
        """Multiply–accumulates of one call, with the given leaf sizes and densities of weight tensors."""
        sizes, density = sizes or {}, density or {}
        total = 0.0
        for cost in self.costs:
            share = density.get(cost.tensor, 1.0) if cost.tensor is not None else 1.0
            total += share * math.prod(self.graph.measure(axis, sizes) for axis in cost.axes)
        return total

    def macs_by_tensor(self, sizes: Mapping[Axis, int] | None = None) -> dict[str, int]:
        """Multiply–accumulates of one call, by the weight tensor that takes part."""
        result: dict[str, int] = defaultdict(int)
        for cost in self.costs:
            if cost.tensor is not None:
                result[cost.tensor] += math.prod(self.graph.measure(axis, sizes or {}) for axis in cost.axes)
        return dict(result)

    # ------------------------------------------------------------------ making of

    def _valid(self, constraints: Sequence[Constraint]) -> tuple[Constraint, ...]:
        """Each constraint once, and only those that hold for the model as it is."""
        seen: dict[tuple[object, ...], Constraint] = {}
        for c in constraints:
            if evaluate(c.expression, self.integers, self._measure({})) == self.graph.find(c.axis).size:
                seen.setdefault((_key(c.expression), id(self.graph.find(c.axis)), c.where), c)
        return tuple(seen.values())

    def _measure(self, sizes: Mapping[Axis, int]):  # type: ignore[no-untyped-def]
        return lambda axis: self.graph.measure(axis, sizes)

    def _resolve(
        self, sizes: Mapping[Axis, int], constraints: Sequence[Constraint]
    ) -> tuple[dict[str, int], list[Constraint]]:
        """Solve for attributes, one at a time; what is left unmet is returned."""
        known: dict[str, int] = {}
        broken: list[Constraint] = []
        measure = self._measure(sizes)
        pending = sorted(constraints, key=lambda c: not isinstance(c.expression, Attribute))
        while pending:
            later: list[Constraint] = []
            for c in pending:
                unknown = {path for path in paths_in(c.expression) if path not in known}
                target = measure(c.axis)
                if not unknown:
                    if evaluate(c.expression, known, measure) != target:
                        broken.append(c)
                elif len(unknown) == 1:
                    found = solve(c.expression, target, known, measure)
                    path = unknown.pop()
                    known[path] = found[1] if found is not None else self.integers[path]
                    if evaluate(c.expression, known, measure) != target:
                        broken.append(c)
                else:
                    later.append(c)
            if len(later) == len(pending):  # several unknowns everywhere: they stay as they are
                known.update({path: self.integers[path] for path in paths_in(later[0].expression) if path not in known})
            pending = later
        return known, broken

    def _pin_unused(self, used: set[str]) -> None:
        for name, info in self.tensors.items():
            if name not in used and info.tied_to is None:
                for axis in info.axes:
                    self.graph.pin(axis, f"{name} is not reached from the example inputs")

    def _pin_values(self) -> None:
        """A size that became a number of its own (a scale, say) cannot change without changing the function."""
        for expression, where in self._values:
            paths = set(paths_in(expression))
            for c in self.constraints:
                if paths & set(paths_in(c.expression)):
                    self.graph.pin(c.axis, f"its size becomes a value, at {where}")
            for axis in axes_in(expression):
                self.graph.pin(axis, f"its size becomes a value, at {where}")

    def _pin_unsolvable(self) -> None:
        """Try each free leaf alone: one index less must leave no constraint unmet."""
        by_leaf: dict[Axis, list[Constraint]] = defaultdict(list)
        by_path: dict[str, list[Constraint]] = defaultdict(list)
        for c in self.constraints:
            for axis in (c.axis, *axes_in(c.expression)):
                for leaf in self.graph.leaves(axis):
                    by_leaf[leaf].append(c)
            for path in paths_in(c.expression):
                by_path[path].append(c)
        for leaf, constraints in by_leaf.items():
            if leaf.pins or leaf.size == 1:
                continue
            paths = {path for c in constraints for path in paths_in(c.expression)}
            touched = {id(c): c for c in [*constraints, *(c for path in paths for c in by_path[path])]}
            _, broken = self._resolve({leaf: leaf.size - 1}, list(touched.values()))
            for c in broken:
                self.graph.pin(
                    leaf, f"the code computes {_text(c.expression)} for a size that must follow, at {c.where}"
                )

    def _collect(self) -> Iterable[AxisInfo]:
        members: dict[Axis, list[Member]] = defaultdict(list)
        names: dict[Axis, str] = {}
        ranked = sorted(self.tensors.items(), key=lambda item: item[1].kind != "parameter")
        for output_first in (True, False):  # an axis is named after the layer that produces it, where one does
            for name, info in ranked:
                for dim, axis in enumerate(info.axes):
                    if info.tied_to is None and output_first == (dim == 0 and len(info.axes) > 1):
                        leaves = list(dict.fromkeys(self.graph.leaves(axis)))
                        for i, leaf in enumerate(leaves):
                            names.setdefault(leaf, f"{name}:{dim}" + (f".{i}" if len(leaves) > 1 else ""))
        for name, info in ranked:
            for dim, axis in enumerate(info.axes):
                for leaf in dict.fromkeys(self.graph.leaves(axis)) if info.tied_to is None else ():
                    members[leaf].extend(Member(name, dim, unit) for unit in self.graph.occurrences(axis, leaf))
        for leaf, name in names.items():
            if leaf is self.graph.one or not any(self.tensors[m.tensor].kind == "parameter" for m in members[leaf]):
                continue
            layer = name.partition(":")[0].rpartition(".")[0]
            yield AxisInfo(
                name, leaf, leaf.size, tuple(members[leaf]), layer, self.modules.get(layer, ""),
                tuple(leaf.pins), tuple(leaf.inexact), "head" in leaf.roles,
            )  # fmt: skip

    def weights(self) -> list[str]:
        """The parameters that multiply activations: weights of linear maps and convolutions, whatever their layer."""
        found = dict.fromkeys(c.tensor for c in self.costs if c.tensor is not None)
        return [name for name in found if self.tensors[name].kind == "parameter"]

    def share(self, axis: AxisInfo) -> float:
        """The fraction of the model's parameters that one index of ``axis`` carries, times the axis' size."""
        less = self.num_params({axis.leaf: axis.size - 1})
        return (self.num_params() - less) * axis.size / max(1, self.num_params())


def _key(expression: object) -> object:
    from topiarist.graph.sizes import Term

    if isinstance(expression, Term):
        return (expression.operator, _key(expression.left), _key(expression.right))
    return id(expression) if isinstance(expression, Axis) else expression


def _text(expression: object) -> str:
    from topiarist.graph.sizes import Term

    if isinstance(expression, Term):
        return f"{_text(expression.left)} {expression.operator} {_text(expression.right)}"
    if isinstance(expression, Attribute):
        return expression.path
    return f"size {expression.size}" if isinstance(expression, Axis) else str(expression)


def empty(size: int) -> Tensor:
    """A selection of ``size`` units in which none goes."""
    return torch.zeros(size, dtype=torch.bool)

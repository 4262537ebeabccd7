"""The result of a trace: every axis with all it ties, whether it may shrink, and what the model costs without it."""

from __future__ import annotations

import copy
import fnmatch
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from topiarist.errors import InputError, nearest
from topiarist.graph.axis import Axis
from topiarist.graph.blueprint import Blueprint
from topiarist.graph.copies import named_modules
from topiarist.graph.matrix import Matrix
from topiarist.graph.reasons import Kind, Reason
from topiarist.graph.sizes import Constraint, Expression, evaluate, text
from topiarist.graph.sizing import Sizing, Step
from topiarist.graph.unchosen import Fills, fills_of, is_known
from topiarist.graph.uniform import Move, described_moves
from topiarist.plan import Member, Scale, Slice

if TYPE_CHECKING:
    from topiarist.graph.folds import Fold
    from topiarist.graph.trace import Trace
    from topiarist.graph.tracked import Cost


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
    ties, the layer that carries it, and why it may not shrink (``pins``) or not exactly (``inexact``). ``step`` names
    the axes that shrink only together with it and how many indices of each go at a time; it is empty for an axis that
    shrinks alone. ``minimum`` of such steps, or of single indices, must stay. ``is_looped`` says that the model goes
    through its indices one by one, and ``lists`` through the entries of which module lists."""

    name: str
    leaf: Axis
    size: int
    members: tuple[Member, ...]
    layer: str
    kind: str
    pins: tuple[Reason, ...]
    inexact: tuple[Reason, ...]
    is_head: bool
    step: tuple[tuple[str, int], ...] = ()
    minimum: int = 1
    is_expert: bool = False
    lists: tuple[str, ...] = ()
    is_looped: bool = False


class Axes:
    """The axes of a model, as `topiarist.trace` infers them."""

    def __init__(
        self,
        model: nn.Module,
        trace: Trace,
        tensors: Mapping[str, TensorInfo],
        integers: Mapping[str, int],
        training_error: Exception | None,
        blueprint: Blueprint | None = None,
    ) -> None:
        self.graph = trace.graph
        self.costs = tuple(trace.costs)
        self.summed = {name: tuple(axes) for name, axes in trace.summed.items()}
        self.biases = dict(trace.biases)
        self.tensors = dict(tensors)
        self.integers = dict(integers)
        self.unknown_operators = dict(trace.unknown)
        self.stubs = dict(trace.stubs)
        self.directions = frozenset(trace.directions)
        self.scales = tuple(trace.scales)  # parameters such as the scales of norms, as far as they are vectors
        self.training_error = training_error
        self.blueprint = blueprint
        self.moves: tuple[Move, ...] = ()
        self.bypasses, self.makers_beside = trace.handed.bypasses()
        self._carried = dict(trace.carried)
        self._lists = dict(trace.lists)
        self._looped = {leaf for axis in trace.looped for leaf in self.graph.leaves(axis)}
        self._runs = dict(trace.runs)
        self.folds = tuple(dict.fromkeys(fold for folds in trace.folds.values() for fold in folds))
        self.outputs = {name: tuple(axes) for name, axes in trace.outputs.items()}
        self.kinds = {name: type(module) for name, module in named_modules(model)}
        self.modules = {name: kind.__name__ for name, kind in self.kinds.items()}
        self.places = _places(model)
        self.depths = _depths(list(trace.order), list(self.modules))
        self._pin_unused(trace.used)
        held = [axis for info in self.tensors.values() for axis in info.axes]
        constraints: Sequence[Constraint] = trace.constraints
        if blueprint is not None:
            constraints = blueprint.constraints(constraints, {n: i.axes for n, i in self.tensors.items()})
        self.sizing = Sizing(self.graph, constraints, integers, held)
        self.axes = tuple(self._collect(self._find_steps() if blueprint is None else self._find_described(blueprint)))
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

    def why_inexact(self, name: str) -> str:
        """Why removing indices of an axis, and of those that shrink with it, cannot equal zeroing; empty if it can."""
        own = self[name].inexact
        others = (f"{n} shrinks with it, and {self[n].inexact[0]}" for n, _ in self[name].step if self[n].inexact)
        return str(own[0]) if own else next(others, "")

    def readers(self, name: str) -> list[Member]:
        """Where the model sums over an axis: the members of weights that multiply it away, input channels as a rule.

        None where activations are summed over it as well, as queries times keys are: then no weights say it all.
        """
        if "met" in self[name].leaf.roles:
            return []
        return [m for m in self[name].members if m.side == "in"]

    def makers(self, name: str) -> list[Member]:
        """Where the model makes an axis out of others: members of weights, output channels as a rule.

        A depthwise weight, which hands the axis on index by index, is none.
        """
        leaf, carried = self[name].leaf, self._carried
        out = (m for m in self[name].members if m.side == "out")
        return [m for m in out if m.tensor not in carried or leaf not in self.graph.leaves(carried[m.tensor])]

    def summary(self) -> str:
        """A table of every axis; see `topiarist.graph.explain.summary`."""
        return self.explain()

    def explain(self, name: str | None = None) -> str:
        """A table of every axis, or all there is to say of one, or of those that a tensor or a module holds.

        A fraction "of the parameters" or "of the MACs" is what goes with one index, times the size of the axis: where
        an axis is both input and output of a layer it counts twice.

        Raises:
            InputError: nothing has that name.
        """
        from topiarist.graph import explain

        return explain.summary(self) if name is None else explain.explain(self, name)

    def stub(self, operator: str) -> str:
        """The beginning of a rule for an operator without one, as Python text; see docs/rules.md.

        Raises:
            InputError: no such operator has run, or it has a rule.
        """
        if operator not in self.stubs:
            raise InputError(f"no operator without a rule is called {operator!r} ({nearest(operator, self.stubs)})")
        return self.stubs[operator]

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
        gone_of = functools.cache(lambda axis: self.graph.removed(axis, by_leaf))
        result: dict[str, tuple[Slice, ...]] = {}
        for name, info in self.tensors.items():
            pieces = []
            for dim, axis in enumerate(info.axes):
                if any(leaf in by_leaf for leaf in self.graph.leaves(axis)):
                    pieces.append(Slice(dim, gone_of(self.graph.find(axis)), (name, dim) not in self.directions))
            if pieces:
                result[name] = tuple(pieces)
        return result

    def sizes(self, removed: Mapping[str, Tensor]) -> dict[Axis, int]:
        """The sizes of the leaves after a cut."""
        return {self[name].leaf: self[name].size - int(gone.sum()) for name, gone in removed.items()}

    def attributes(self, removed: Mapping[str, Tensor]) -> tuple[dict[str, int], list[Constraint]]:
        """The integer attributes that follow a cut, and the constraints that no attribute can meet."""
        return self.following(self.sizes(removed))

    def following(self, sizes: Mapping[Axis, int]) -> tuple[dict[str, int], list[Constraint]]:
        """The same when leaves have these sizes."""
        if self.blueprint is None:
            return self.sizing.attributes(sizes)
        fields: Mapping[str, int] = self.blueprint.fields
        for move in self.moves:
            fields = move.fields(move.times(sizes), fields)
        found, broken = self.sizing.attributes(sizes, fields, [path for move in self.moves for path in move.less])
        return {**found, **self.blueprint.follow(fields)}, broken

    def size_under(self, sizes: Mapping[Axis, int]) -> Callable[[Expression], int]:
        """What sizes written in Python come to when leaves have these."""
        attributes, measure = {**self.integers, **self.following(sizes)[0]}, self.graph.measuring(sizes)
        return lambda expression: evaluate(expression, attributes, measure)

    def rescaled(self, removed: Mapping[str, Tensor]) -> dict[str, tuple[Scale, ...]]:
        """By what entries of weights are multiplied, since the code computes numbers from sizes that a cut changes."""
        before, after = self.size_under({}), self.size_under(self.sizes(removed))
        found: dict[str, list[Scale]] = defaultdict(list)
        for fold in self.folds:
            if before(fold.size) != after(fold.size):
                factor = (before(fold.size) / after(fold.size)) ** fold.power
                for tensor, positions in fold.entries.items():
                    within = tuple((dim, own) for dim, own in enumerate(positions) if not bool(own.all()))
                    found[tensor].append(Scale(factor, within))
        return {tensor: tuple(scales) for tensor, scales in found.items()}

    def folds_of(self, axis: AxisInfo) -> tuple[Fold, ...]:
        """The numbers in the code that change when ``axis`` shrinks, and what makes up for them."""
        if not self.folds or axis.pins:
            return ()
        gone = torch.arange(axis.size) < dict(axis.step).get(axis.name, 1)
        before, after = self.size_under({}), self.size_under(self.sizes({axis.name: gone}))
        return tuple(fold for fold in self.folds if before(fold.size) != after(fold.size))

    def steps(self) -> list[tuple[Step, int]]:
        """What may go at a time: how many indices of which leaves together, and how often at most.

        Not of axes whose indices run one by one: as much less runs as indices go.
        """
        found: dict[frozenset[str], tuple[Step, int]] = {}
        for axis in self.axes:
            step = [(self[name], num) for name, num in axis.step or ((axis.name, 1),)]
            if not any(a.pins or a.is_looped for a, _ in step):
                most = min(min((a.size - 1) // num, a.size // num - a.minimum) for a, num in step)
                found.setdefault(frozenset(a.name for a, _ in step), ({a.leaf: num for a, num in step}, max(1, most)))
        return list(found.values())

    def undescribed(self, removed: Mapping[str, Tensor]) -> str | None:
        """Why the model's config cannot describe what a cut leaves; None where it can, or where nothing asks it to."""
        if self.blueprint is None:
            return None
        sizes = self.sizes(removed)
        return self._misses(self.blueprint, sizes, self.following(sizes)[0])

    def _misses(self, blueprint: Blueprint, sizes: Mapping[Axis, int], attributes: Mapping[str, int]) -> str | None:
        shapes = {n: tuple(self.graph.measure(axis, sizes) for axis in i.axes) for n, i in self.tensors.items()}
        return blueprint.misses(attributes, shapes)

    def without(self, modules: Collection[str]) -> Axes:
        """The same without the tensors that only these modules hold, and without what is computed inside of them."""
        left: dict[str, TensorInfo] = {}
        counted: set[str] = set()
        places = [place for module in modules for place in self.places[module]]
        for name, info in self.tensors.items():
            if not any(name.startswith(f"{place}.") for place in places):
                first = info.tied_to or name
                left[name] = replace(info, tied_to=first if first in counted else None)
                counted.add(first)
        costs = (cost for cost in self.costs if not any(module in modules for module in cost.modules))
        return self.with_bill(left, costs)

    def shortened(self, removed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which entries leave which module list when the named axes lose indices: bool of shape ``(num entries,)``."""
        return {path: gone for name, gone in removed.items() if bool(gone.any()) for path in self[name].lists}

    def left(self, removed: Mapping[str, Tensor]) -> Axes:
        """The same without the entries of module lists that go with these indices."""
        gone = self.shortened(removed).items()
        modules = [f"{path}.{i}" for path, entries in gone for i in entries.nonzero().flatten().tolist()]
        return self.without(modules) if modules else self

    def entries(self, name: str) -> list[Member]:
        """Of an axis with module lists, the parameters of their entries: each belongs to one index as a whole."""
        return [
            Member(tensor, None, torch.tensor(i))
            for path in self[name].lists
            for i in range(self[name].size)
            for tensor, info in self.tensors.items()
            if info.kind == "parameter" and info.tied_to is None and tensor.startswith(f"{path}.{i}.")
        ]

    def renumbered(self, removed: Mapping[str, Tensor]) -> dict[str, int]:
        """The integers by which the entries of a module list know their own places, once some have gone."""
        found: dict[str, int] = {}
        for path, gone in self.shortened(removed).items():
            held = [self._places_of(f"{path}.{i}.", i) for i in range(len(gone))]
            for place, i in enumerate((~gone).nonzero().flatten().tolist()):
                found.update((f"{path}.{i}.{own}", place) for own in set.intersection(*held) if place != i)
        return found

    def _places_of(self, prefix: str, place: int) -> set[str]:
        """The integers below ``prefix`` that are ``place``."""
        return {
            path.removeprefix(prefix) for path, n in self.integers.items() if path.startswith(prefix) and n == place
        }

    def unchosen(self, removed: Mapping[str, Tensor]) -> Fills:
        """What is to count for nothing in which calls of operators where experts are never chosen, as
        `topiarist.graph.unchosen.never_chosen` asks; empty where some operator over their axes knows no such thing."""
        gone = {self[name].leaf: indices for name, indices in removed.items()}
        fills = fills_of(self._runs, self.graph, gone)
        known = all(is_known(reason, fills) for name in removed for reason in self[name].inexact)
        return fills if known else {}

    def with_bill(self, tensors: Mapping[str, TensorInfo], costs: Iterable[Cost]) -> Axes:
        """The same with other tensors and costs to count."""
        other = copy.copy(self)
        other.tensors, other.costs = dict(tensors), tuple(costs)
        return other

    def num_params(self, sizes: Mapping[Axis, int] | None = None) -> int:
        """Parameters with the given leaf sizes; tied tensors count once."""
        return self._count(sizes or {}, lambda info: info.kind == "parameter", lambda info: 1)

    def num_bytes(self, sizes: Mapping[Axis, int] | None = None) -> int:
        """Bytes of parameters and buffers with the given leaf sizes; tied tensors count once."""
        return self._count(sizes or {}, lambda info: info.kind != "attribute", lambda info: info.itemsize)

    def layer_share(self, axis: AxisInfo, layer: str) -> float:
        """The part of `share` that the parameters of one module carry."""
        less, lost = {axis.leaf: axis.size - 1}, 0
        for name in {m.tensor for m in axis.members if m.tensor.rpartition(".")[0] == layer}:
            info = self.tensors[name]
            before, after = (math.prod(self.graph.measure(a, sizes) for a in info.axes) for sizes in ({}, less))
            lost += before - after if info.kind == "parameter" else 0
        return lost * axis.size / max(1, self._whole["params"])

    def _count(self, sizes, wanted, weight) -> int:  # type: ignore[no-untyped-def]
        total, measured = 0, self.graph.measuring(sizes)
        for info in self.tensors.values():
            if info.tied_to is None and wanted(info):
                total += weight(info) * math.prod(map(measured, info.axes))
        return total

    def num_macs(self, sizes: Mapping[Axis, int] | None = None, density: Mapping[str, float] | None = None) -> float:
        """Multiply–accumulates of one call, with the given leaf sizes and densities of weight tensors."""
        measured, density = self.graph.measuring(sizes or {}), density or {}
        total = 0.0
        for cost in self.costs:
            share = density.get(cost.tensor, 1.0) if cost.tensor is not None else 1.0
            total += share * _priced(cost, measured)
        return total

    def macs_by_tensor(self, sizes: Mapping[Axis, int] | None = None) -> dict[str, float]:
        """Multiply–accumulates of one call, by the weight tensor that takes part."""
        result: dict[str, float] = defaultdict(int)
        measured = self.graph.measuring(sizes or {})
        for cost in self.costs:
            if cost.tensor is not None:
                result[cost.tensor] += _priced(cost, measured)
        return dict(result)

    # ------------------------------------------------------------------ making of

    def _pin_unused(self, used: set[str]) -> None:
        for name, info in self.tensors.items():
            if name not in used and info.tied_to is None:
                for axis in info.axes:
                    self.graph.pin(axis, f"{name} is not reached from the example inputs", "unused")

    def _find_steps(self) -> list[Step]:
        """Pin the leaves that no step can take; return the steps that take more than one index."""
        steps, stopped = self.sizing.steps()
        for leaf, constraints in stopped.items():
            for c in constraints:
                said = "its size becomes a value" if c.is_value else f"the code computes {text(c.expression)}"
                kind: Kind = "value" if c.is_value else "computed"
                self.graph.pin(leaf, Reason(f"{said}, and no other axis can follow", kind, c.where, c.module))
        return steps

    def _find_described(self, blueprint: Blueprint) -> list[Step]:
        """Pin the leaves of which no config can describe fewer; return the steps that fields of the config take."""

        def misses(sizes: Mapping[Axis, int], fields: Mapping[str, int]) -> str | None:
            found = self.sizing.attributes(sizes, fields, blueprint.fields)[0]
            return self._misses(blueprint, sizes, {**found, **blueprint.follow(fields)})

        moves, refused = described_moves(self.sizing, blueprint.fields, misses)
        self.moves = tuple(moves)
        for leaf, reason in refused.items():
            self.graph.pin(leaf, f"{blueprint.name} cannot describe it: {reason}", "config")
        return [move.step for move in moves if list(move.step.values()) != [1]]

    def _collect(self, steps: Sequence[Step]) -> Iterable[AxisInfo]:
        step_of = {leaf: step for step in steps for leaf in step}
        minimum = {leaf: min(a.size // n for a, n in m.step.items()) - m.most for m in self.moves for leaf in m.step}
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
        occurrences = functools.cache(self.graph.occurrences)
        for name, info in ranked:
            for dim, axis in enumerate(info.axes):
                for leaf in dict.fromkeys(self.graph.leaves(axis)) if info.tied_to is None else ():
                    places = occurrences(self.graph.find(axis), leaf)
                    members[leaf].extend([Member(name, dim, unit, self.side(name, dim)) for unit in places])
        for leaf, name in names.items():
            if leaf is self.graph.one or not any(self.tensors[m.tensor].kind == "parameter" for m in members[leaf]):
                continue
            layer = name.partition(":")[0].rpartition(".")[0]
            yield AxisInfo(
                name, leaf, leaf.size, tuple(members[leaf]), layer, self.modules.get(layer, ""),
                tuple(leaf.pins), tuple(leaf.inexact), "head" in leaf.roles,
                tuple((names[other], num) for other, num in step_of.get(leaf, {}).items() if other in names),
                max(minimum.get(leaf, 1), self._least(leaf)), "expert" in leaf.roles and "head" not in leaf.roles,
                self._lists.get(leaf, ()), leaf in self._looped,
            )  # fmt: skip

    def side(self, name: str, dim: int) -> Literal["in", "out", ""]:
        """What dimension ``dim`` of a tensor is to the products it takes part in; see `topiarist.plan.Member`."""
        if name not in self.summed:
            return ""
        axes, summed = self.tensors[name].axes, self.summed[name]
        if any(axis in summed for axis in axes):  # told apart by identity: both sides of a weight may be one axis
            return "in" if axes[dim] in summed else "out"
        leaves = {leaf for axis in summed for leaf in self.graph.leaves(axis)}  # several may be summed over as one
        return "in" if leaves.issuperset(self.graph.leaves(axes[dim])) else "out"

    def _least(self, leaf: Axis) -> int:
        """How many indices an operator needs, such as a top-k as many as it chooses."""
        return max((num for other, num in self.graph.least.items() if self.graph.find(other) is leaf), default=1)

    def weights(self) -> list[str]:
        """The parameters that multiply activations: weights of linear maps and convolutions, whatever their layer."""
        found = dict.fromkeys(c.tensor for c in self.costs if c.tensor is not None)
        return [name for name in found if self.tensors[name].kind == "parameter"]

    def matrices(self) -> dict[str, Matrix]:
        """Of each of `weights`, which dimensions are summed over and which are left; those of which it is known."""
        found = {c.tensor: c.matrix for c in reversed(self.costs) if c.tensor is not None and c.matrix is not None}
        return {name: found[name] for name in self.weights() if name in found}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the model."""
        return tuple(self.graph.measure(axis, {}) for axis in self.tensors[name].axes)

    def share(self, axis: AxisInfo, of: Literal["params", "macs"] = "params") -> float:
        """The fraction of the model's parameters or MACs that one index of ``axis`` carries, times the axis' size."""
        if of == "params":
            return sum(self.layer_share(axis, layer) for layer in {m.tensor.rpartition(".")[0] for m in axis.members})
        return (
            (self._whole["macs"] - self.num_macs({axis.leaf: axis.size - 1})) * axis.size / max(1, self._whole["macs"])
        )

    @cached_property
    def _whole(self) -> dict[str, float]:
        return {"params": self.num_params(), "macs": self.num_macs()}


def _priced(cost: Cost, measured: Callable[[Axis], int]) -> float:
    """Multiply–accumulates of one entry of `Axes.costs`: of rows that go to one expert each, its share; of what is
    there for each expert, as much less as there are fewer."""
    whole: float = math.prod(map(measured, cost.axes))
    if cost.among is not None:
        whole = whole * cost.among[1] / measured(cost.among[0])
    return whole if cost.each is None else whole * measured(cost.each) / cost.each.size


def _places(model: nn.Module) -> dict[str, list[str]]:
    """Every name of each module, by the first."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, module in named_modules(model, remove_duplicate=False):
        names[id(module)].append(name)
    return {places[0]: places for places in names.values()}


def _depths(order: Sequence[str], modules: Sequence[str]) -> dict[str, int]:
    """The place of every module in the order in which they ran; one that was never called itself follows its parent."""
    began = {name: i for i, name in enumerate(order)}

    def key(name: str) -> int:
        while name not in began and name:
            name = name.rpartition(".")[0]
        return began.get(name, 0)

    return {name: i for i, name in enumerate(sorted(modules, key=key))}

"""What is known while a model runs: the axes of every tensor seen, what they tie, and what rules say of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from topiarist.graph.assumed import Searches
from topiarist.graph.axis import Axis, AxisGraph, nowhere
from topiarist.graph.folds import Fold
from topiarist.graph.handed import Handed
from topiarist.graph.kernels import Kernels
from topiarist.graph.leaks import evict
from topiarist.graph.matrix import Matrix, matrix_by_leaves, matrix_by_strides
from topiarist.graph.modes import Modes, kind_of
from topiarist.graph.picks import Picks
from topiarist.graph.reasons import Kind, Reason
from topiarist.graph.rehearsal import Performance
from topiarist.graph.rules import RULES
from topiarist.graph.rules.values import KEEP_VALUES
from topiarist.graph.sizes import (
    Attribute,
    Constraint,
    Expression,
    Size,
    Term,
    evaluate,
    expression_of,
    paths_in,
    sizes_in,
    source_line,
)
from topiarist.graph.stub import stub
from topiarist.graph.tracked import Cost, Tracked
from topiarist.graph.unchosen import NEUTRAL, Call
from topiarist.outputs import tensors_in


class _Operator(NamedTuple):
    """An operator, its rule, whether it hands values on as they are, whether it writes into what it is given, and
    whether it is noted what it runs over, see `topiarist.graph.unchosen`."""

    func: Any
    packet: Any
    rule: Callable[..., None] | None
    keeps_values: bool
    writes: bool
    is_noted: bool


_AS_IT_IS: AbstractContextManager[None] = nullcontext()


class Trace:
    """What the rules speak to while a model runs."""

    def __init__(self) -> None:
        self.running: list[str] = []  # the modules that run at the moment, the outermost first
        self.modes = Modes(self.running)
        self.order: dict[str, None] = {}  # every module that has run, the first to begin first
        self.graph = AxisGraph(self.here)
        self.costs: list[Cost] = []
        self.numbers: Performance = []  # that operators were given in evaluation mode
        self.constraints: list[Constraint] = []
        self.values: dict[str, list[Constraint]] = {  # those of sizes become values, by the run
            "evaluation": [], "compared": [], "training": [],
        }  # fmt: skip
        self.folds: Mapping[frozenset[Axis], tuple[Fold, ...]] = {}  # what makes up for such values, by leaves
        self.integers: dict[str, int] = {}  # attribute → value, as the model has them
        self.unknown: dict[str, str] = {}  # operator without a rule → first source line
        self.stubs: dict[str, str] = {}  # operator without a rule → the beginning of one
        self.outputs: dict[str, list[Axis]] = {}  # module → axes of what it returns
        self.choices: list[tuple[Axis, int, Reason]] = []  # axes of which the best are chosen, and how many
        self.handed = Handed()  # what modules return, and who uses it
        self.carried: dict[str, Axis] = {}  # weight → the groups that it hands on one by one, as depthwise ones do
        self.used: set[str] = set()
        self.summed: dict[str, list[Axis]] = {}  # weight → axes of it that a product with activations sums over
        self.biases: dict[str, str] = {}  # weight → what is added to its outputs, one number each
        self.parameters: set[str] = set()
        self.own: dict[int, Tensor] = {}  # the model's tensors, by id
        self.directions: dict[tuple[str, int], None] = {}  # (tensor, dimension) along which zeros have no value
        self.scales: dict[str, None] = {}  # vectors of the model that activations are multiplied by, entry by entry
        self.strides: dict[str, tuple[int, ...]] = {}  # of the model's tensors, by name
        self.sources: dict[str, tuple[Axis, ...]] = {}  # their axes
        self.counting = True
        self.is_elsewhere = False  # on the meta device in place of another
        self.is_inside = False  # of an operator
        self.skips_steps = False  # those of recurrent functions, which are no operators to it
        self.kernels = Kernels()
        self.picks = Picks(self)
        self.searches = Searches(self.picks.is_pick, self.picks.num_hit)
        self.runs: dict[Call, list[tuple[Axis, ...]]] = {}  # operators over axes → the axes of their first operands
        self.lists: dict[Axis, tuple[str, ...]] = {}  # experts → module lists of which the entries are these
        self.looped: list[Axis] = []  # experts that run one by one
        self._known: dict[int, tuple[Tensor, Tracked]] = {}
        self._operators: dict[int, _Operator] = {}  # by id: torch hashes them in Python
        self._sharing: dict[int, list[Tensor]] = {}  # storage → tensors that look at it
        self._is_closed = False
        self._place: tuple[str, str] | None = None  # where the operator stands that runs at the moment
        self._settled = (0, 0, 0)  # how many leaves, parts and constraints are accounted for

    def __getitem__(self, tensor: Tensor) -> Tracked:
        """What is known of ``tensor``; one never seen before is a constant and pins what it meets."""
        entry = self._known.get(id(tensor))
        if entry is None:
            axes = self.pinned(tensor.shape, "it meets a constant tensor", "constant")
            self.put(tensor, axes)
            entry = self._known[id(tensor)]
        tracked = entry[1]
        if tracked.source is not None and tracked.axes:
            self.used.add(tracked.source)
        for axis, reason in tracked.pins:
            self.pin(axis, reason)
        return tracked

    def put(
        self, tensor: Tensor, axes: Sequence[Axis], zero: Sequence[bool] | None = None, source: str | None = None,
        is_uniform: bool = False, pins: Sequence[tuple[Axis, str]] = (), ranges: Axis | None = None,
        taken: tuple[Axis, int] | None = None,
    ) -> None:  # fmt: skip
        """Say what the axes of ``tensor`` are, and the rest of `Tracked`; ``zero`` defaults to True everywhere."""
        sizes = tuple([self.graph.find(axis).size for axis in axes])
        if sizes != tensor.shape:
            raise AssertionError(f"a rule gave axes of sizes {sizes} to a tensor of shape {tuple(tensor.shape)}")
        zeros = (True,) * len(sizes) if zero is None else tuple(zero)
        if id(tensor) not in self._known:
            self._sharing.setdefault(_storage(tensor), []).append(tensor)
        self._known[id(tensor)] = (tensor, Tracked(tuple(axes), zeros, source, is_uniform, tuple(pins), ranges, taken))

    def indices(self, tensor: Tensor) -> Tracked:
        """What is known of a tensor of which the values are taken for nothing but indices."""
        entry = self._known.get(id(tensor))
        return self[tensor] if entry is None or entry[1].ranges is None else entry[1]

    def taken(self, tensor: Tensor) -> tuple[Axis, int] | None:
        """Of which axis of a model's tensor this is a single index, and which."""
        entry = self._known.get(id(tensor))
        return None if entry is None else entry[1].taken

    def looked_up(self, tensor: Tensor, dim: int, index: Tensor, reason: str) -> None:
        """Indices of a dimension are looked up by the values of ``index``: tied to what these range over, or pinned."""
        ranges, tracked = self.indices(index).ranges, self[tensor]
        if ranges is None:
            self.pin(tracked.axes[dim], reason, "lookup")
            return
        axis = self.unify(tracked.axes[dim], ranges, "a choice by rank")
        if tracked.source is not None:
            self.graph.mark_role(axis, "expert")

    def ranked(self, axis: Axis, num: int, operator: str) -> None:
        """The ``num`` best along ``axis`` are chosen: pinned in the end, unless the choice is of experts."""
        self.inexact(axis, operator)
        self.choices.append((axis, num, Reason("its values are ranked", "order", *self.here())))

    def decide(self) -> None:
        """Pin what is ranked for its own sake; of experts, as many as are chosen must stay."""
        self._decide_picks()
        stacks = ((c.tensor, d) for c in self.costs if c.matrix is not None for d in c.matrix.others)
        stacked = {leaf for name, d in stacks for leaf in self.graph.leaves(self.sources[str(name)][d])}
        for axis, num, reason in self.choices:
            for leaf in self.graph.leaves(axis):
                if leaf in stacked:
                    leaf.roles.add("expert")
            if all("expert" in leaf.roles for leaf in self.graph.leaves(axis)):
                for leaf in self.graph.leaves(axis):
                    self.graph.least[leaf] = max(num, self.graph.least.get(leaf, 1))
                    self._tie_counts(self._holders(leaf), leaf)
            else:
                self.graph.pin(axis, reason)

    def _decide_picks(self) -> None:
        """Modules, or slices of weights, that deal with an index each are experts; where there are none, its indices
        are values."""
        for axis, reason in self.picks.axes.items():
            whole = self.graph.find(axis)
            stacks = self.picks.stacks(whole)
            lists = self.picks.lists(whole) if whole.form == "leaf" and not whole.pins else ()
            if not (lists or stacks):
                self.graph.pin(whole, reason)
                continue
            for stack in stacks:
                self.unify(stack, whole, "a choice")
            whole = self.graph.find(axis)
            self.looped.append(whole)
            for leaf in self.graph.leaves(whole):
                leaf.roles.add("expert")
            if lists:
                self.lists[whole] = lists
            self._tie_counts({path.rpartition(".")[0] for path in lists}, whole)

    def _holders(self, leaf: Axis) -> set[str]:
        """The modules that hold stacks of weights along an axis."""
        held = (name for name, axes in self.sources.items() if len(axes) > 2 and leaf in map(self.graph.find, axes))
        return {name.rpartition(".")[0] for name in held}

    def _tie_counts(self, modules: set[str], leaf: Axis) -> None:
        """A number of its own that a module keeps beside its experts, as many as there are, and of which nothing else
        is seen, counts them: what ``range`` does with a size cannot be seen."""
        seen = {path for c in self.constraints for path in paths_in(c.expression)}
        for path, value in self.integers.items():
            module, _, name = path.rpartition(".")
            if value == leaf.size and module in modules and name.isidentifier() and path not in seen:
                self.tie(Attribute(path), leaf)

    def drop_pins(self, tensors: Sequence[Tensor]) -> None:
        """Use of these tensors pins nothing after all."""
        for tensor in tensors:
            known = self._known[id(tensor)][1]
            self._known[id(tensor)] = (tensor, known._replace(pins=()))

    def alias(self, twin: Tensor, tensor: Tensor) -> None:
        """Let ``twin`` stand for ``tensor``."""
        self._sharing.setdefault(_storage(twin), []).append(twin)
        self._known[id(twin)] = (twin, self._known[id(tensor)][1])

    def knows(self, tensor: Tensor) -> bool:
        """Whether an operator or the model itself has made ``tensor``."""
        return id(tensor) in self._known

    @property
    def counts(self) -> bool:
        """Whether what runs counts: in evaluation mode."""
        return self.counting and not self.modes.is_training

    def here(self) -> tuple[str, str]:
        """The source line of the model's code that runs at the moment, and the module; empty where there is none."""
        if not self.running:
            return nowhere()
        if self._place is None or not self.is_inside:
            self._place = (source_line(), self.running[-1])
        return self._place

    def pinned(self, sizes: Sequence[int], reason: str, kind: Kind = "order") -> list[Axis]:
        """New axes that may not shrink."""
        axes = [self.graph.leaf(size) for size in sizes]
        for axis in axes:
            self.pin(axis, reason, kind)
        return axes

    def pin(self, axis: Axis, reason: str, kind: Kind = "order") -> None:
        """Pin ``axis`` with a reason; the source line that causes it, and what to do about that kind, come with it."""
        if axis is not self.graph.one:
            self.graph.pin(axis, reason, kind)

    def inexact(self, axis: Axis, operator: str) -> None:
        """Note that ``operator`` runs over ``axis``, so that removing an index cannot equal zeroing it."""
        self.graph.mark_inexact(axis, f"{operator} runs over it")

    def unify(self, a: Axis, b: Axis, operator: str) -> Axis:
        """Tie two axes of equal size; axes of size 1 broadcast and tie nothing."""
        return self.graph.unify(a, b, operator)

    def contract(self, a: tuple[Tensor, int], b: tuple[Tensor, int], operator: str) -> Axis:
        """Tie the contracted pair; exact where either side is zero at a zeroed index."""
        left, right = self[a[0]], self[b[0]]
        axis = self.unify(left.axes[a[1]], right.axes[b[1]], operator)
        if left.source is None and right.source is None:
            self.graph.mark_role(axis, "met")  # queries and keys, for one: no weight alone reads it
        if not (left.zero[a[1]] or right.zero[b[1]]):
            self.inexact(axis, operator)
        self.sums(*a)
        self.sums(*b)
        return axis

    def points(self, tensor: Tensor, dim: int) -> None:
        """Note that each index of ``dim`` is a direction, which a mask leaves alone: zero is none."""
        axes, source = self[tensor].axes, self[tensor].source
        if source is not None and [*map(self.graph.find, axes)] == [*map(self.graph.find, self.sources[source])]:
            self.directions[source, dim % tensor.dim()] = None
        else:
            self.inexact(axes[dim], "a norm without a value at zero")

    def scaled(self, tensor: Tensor) -> None:
        """Note that activations are multiplied by ``tensor``, entry by entry; it is a scale where it is a vector."""
        source = self[tensor].source
        if source is not None and sum(size != 1 for size in tensor.shape) == 1:
            self.scales[source] = None

    def sums(self, tensor: Tensor, dim: int) -> None:
        """Note that a product sums over dimension ``dim`` of ``tensor``, which may be a weight."""
        tracked = self[tensor]
        if tracked.source is not None:
            self.summed.setdefault(tracked.source, []).append(tracked.axes[dim])

    def adds(self, weight: Tensor, bias: Tensor) -> None:
        """Note that ``bias`` is added to each output of a product with ``weight``."""
        names = self[weight].source, self[bias].source
        if names[0] is not None and names[1] is not None and bias.dim() == 1:
            self.biases[names[0]] = names[1]

    def cost(self, *axes: Axis, source: str | None, factor: tuple[Tensor, int, int] | None = None) -> None:
        """Count multiply–accumulates: the product of the sizes of ``axes``.

        ``factor`` is the view of the model tensor ``source`` that takes part, with the dimension of it that is summed
        over and the one that is left.
        """
        if self.counts:
            matrix = None if factor is None or source is None else self._matrix(source, *factor)
            taken = None if factor is None else self.taken(factor[0])
            each = None if taken is None else taken[0]
            self.costs.append(Cost(axes, source, matrix, tuple(self.running), self.picks.share(), each))

    def _matrix(self, source: str, view: Tensor, inner: int, outer: int) -> Matrix | None:
        """What two dimensions of a view, or of a rearranged copy, are in the model tensor ``source``."""
        strides, axes = self.strides[source], self.sources[source]
        if any(self._known[id(t)][1].source == source and t.stride() == strides and t.dim() == len(axes)
               for t in (view, *self._sharing.get(_storage(view), ()))):  # fmt: skip
            return matrix_by_strides(strides, view, inner, outer)
        held = [{leaf for leaf in self.graph.leaves(axis) if leaf.size > 1} for axis in axes]
        factor = [{*self.graph.leaves(self[view].axes[dim])} for dim in (inner, outer)]
        return matrix_by_leaves(held, *factor)

    def sized(self, value: int, axis: Axis) -> None:
        """A call fixed the size of ``axis`` to ``value``: remember where the number came from."""
        if self.graph.find(axis).size == 1:
            return
        expression = expression_of(value)
        if isinstance(expression, int):
            self.pin(axis, f"the size {expression} is written in the code", "literal")
        else:
            self.tie(expression, axis)

    def tie(self, expression: Expression, axis: Axis) -> None:
        """Remember that ``expression`` must equal the size of ``axis``."""
        if self.graph.find(axis).size != 1:
            self.constraints.append(Constraint(expression, axis, *self.here()))

    def axes_of(self, tensor: Tensor) -> tuple[Axis, ...]:
        """The axes of ``tensor``, of whose values nothing is used."""
        entry = self._known.get(id(tensor))
        return self[tensor].axes if entry is None else entry[1].axes

    def shape(self, tensor: Tensor) -> torch.Size:
        """The shape of ``tensor`` as integers that remember their axes."""
        sizes = [Size(self.graph.find(axis).size, axis, self) for axis in self.axes_of(tensor)]
        return torch.Size(sizes)

    def returned(self, name: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        """A module has returned: note what could be left in its place; see `topiarist.graph.handed`."""
        with torch._C.DisableTorchFunction():  # looking at it is no part of the model
            self.handed.returned(name, module, args, kwargs, out, self.counts)

    def uses(self, args: Any, kwargs: Any) -> None:
        """These tensors are used at the moment."""
        if self.handed.is_watching:
            self.handed.used((*args, *kwargs.values()), self.running[-1] if self.running else "")

    def known_of(self, out: Any) -> list[Tracked] | None:
        """What is known of what a module returned, a tensor or a tuple or list of some; None of anything else."""
        tensors = [out] if isinstance(out, Tensor) else out
        if not isinstance(tensors, (tuple, list)) or not all(isinstance(t, Tensor) for t in tensors):
            return None
        return [self._known[id(t)][1] for t in tensors]

    def alike(self, before: list[Tracked] | None, after: list[Tracked] | None) -> bool:
        """Whether no operator can tell one output from the other."""
        if before is None or after is None or len(before) != len(after):
            return False
        return all(
            len(a.axes) == len(b.axes) and all(map(self._are_alike, a.axes, b.axes, a.zero, b.zero)) and a[2:] == b[2:]
            for a, b in zip(before, after, strict=True)
        )

    def _are_alike(self, left: Axis, right: Axis, left_zero: bool, right_zero: bool) -> bool:
        """Whether two are one axis, of which zeroed indices are zero in both tensors or, being pinned, never come."""
        if self.graph.find(left) is not self.graph.find(right):
            return False
        return left_zero == right_zero or all(leaf.pins for leaf in self.graph.leaves(left))

    def kind_of(self, module: nn.Module, args: Sequence[Any], kwargs: Any) -> Hashable:
        """What calls that go the same way have in common; None where that cannot be said."""
        entries = [self._known.get(id(x)) for x in args]
        with torch._C.DisableTorchFunction():
            kind = kind_of(module)
            if kind is None or kwargs or None in entries:
                return None
            return kind, *[(self._structure(e[1]), e[0].dtype, e[0].stride()) for e in entries if e is not None]

    def _structure(self, known: Tracked) -> Hashable:
        """What is known of a tensor, but for which axes it has."""
        numbers: dict[Axis, int] = {}
        leaves = [(numbers.setdefault(leaf, len(numbers)), leaf) for a in known.axes for leaf in self.graph.leaves(a)]
        shared = tuple([(number, bool(leaf.pins), bool(leaf.inexact)) for number, leaf in leaves])
        rest = (known.source is None, known.is_uniform, not known.pins, known.ranges is None)
        return tuple(map(repr, known.axes)), shared, known.zero, rest

    def num_known(self) -> Hashable:
        """As many things as are known: a run that teaches nothing leaves it as it is."""
        held = (self.graph.parts, self.constraints, self.choices, self.used, self.order, self.scales, self.carried)
        others = (self.unknown, self.biases, self.summed, self.directions)
        return self.graph.num_changes, self.graph.age, *[len(found) for found in (*held, *others)]

    def forget(self) -> None:
        """Forget every tensor that is not the model's own, also where somebody has kept one without values."""
        own = self.own
        passed = [entry[0] for key, entry in self._known.items() if key not in own]
        without_values = [ref(tensor) for tensor in passed if tensor.is_meta or isinstance(tensor, FakeTensor)]
        del passed
        self._known = {key: entry for key, entry in self._known.items() if key in own}
        self._sharing.clear()
        self.picks.forget()
        self.handed.forget()
        for tensor, _ in self._known.values():
            self._sharing.setdefault(_storage(tensor), []).append(tensor)
        evict(without_values)

    def close(self) -> None:
        """Sizes that somebody has kept say nothing any more."""
        self._is_closed = True
        self.running.clear()
        self.graph.here = nowhere  # the graph outlives the trace, and must not hold its tensors

    def on_value(self, expression: Expression) -> None:
        """A size became a number of its own: what it belongs to cannot change without changing the function."""
        if self._is_closed:
            return
        now = evaluate(expression, self.integers, lambda axis: self.graph.find(axis).size)
        value = Constraint(Term("-", expression, now), Axis(0), *self.here(), is_value=True)
        self.constraints.append(value)
        self.values["evaluation" if self.counts else "compared" if self.counting else "training"].append(value)

    def on_equal(self, left: Expression, right: Expression) -> None:
        """The code found two sizes equal: they must stay so for it to go the same way."""
        if not self._is_closed:
            self.tie(Term("-", left, right), Axis(0))

    # ------------------------------------------------------------------ the operators' side

    def operator(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Let the rule of ``func`` speak, or pin everything where there is none."""
        self._place = None
        self.uses(args, kwargs)
        outputs = _tensors_of(out)
        spoken = self._operators.get(id(func)) or self._operator(func)
        if spoken.is_noted and self.counts:
            call = str(spoken.packet.__name__), *self.here()
            self.runs.setdefault(call, []).append(self.axes_of(args[0]))
        if not outputs:  # a number, and whoever asks for it reads what it is of
            if isinstance(out, torch.device) or (args and self.searches.is_found(args[0])):
                return
            for tensor in (t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)):
                self[tensor]
            return
        if "out" in kwargs:  # the tensor to write into is the output
            kwargs = {k: v for k, v in kwargs.items() if k != "out"}
        found, failure = spoken.rule, None
        if found is not None:
            try:
                with self._as_indices(self._looked_at(spoken, args, kwargs)):
                    found(self, out, *args, **kwargs)
                if spoken.keeps_values:
                    self._hand_ranges_on(args, outputs)
            except Exception as error:  # a rule that does not hold here is no rule: pinned, never wrong
                failure = error
        if found is None or failure is not None:
            self._pin_unruled(func, args, kwargs, out, failure)
        if self.picks.are_followed:
            self.picks.follow(spoken.packet, args, kwargs, outputs)
        if spoken.writes:
            self._written(outputs)

    def _operator(self, func: Any) -> _Operator:
        packet = func.overloadpacket
        rule = RULES.get(func) or RULES.get(packet)
        made = _Operator(func, packet, rule, packet in KEEP_VALUES, func._schema.is_mutable, packet in NEUTRAL)
        self._operators[id(func)] = made
        return made

    def _looked_at(self, spoken: _Operator, args: Sequence[Any], kwargs: Any) -> Sequence[Any]:
        """The operands of which an operator uses neither that they are indices nor that they are single ones."""
        if spoken.keeps_values or self.picks.compares(spoken.packet, args):
            return args[:1]
        return self.picks.dealt_with(args, kwargs)

    def _as_indices(self, tensors: Sequence[Any]) -> AbstractContextManager[None]:
        """Inside the ``with``, to look at these tensors is no use of their values, where they are indices, and no use
        of a single index, where they are one."""
        entries = [self._known.get(id(t)) for t in tensors]
        indices = [e for e in entries if e is not None and (e[1].ranges is not None or e[1].taken is not None)]
        return self._without_pins(indices) if indices else _AS_IT_IS

    @contextmanager
    def _without_pins(self, indices: Sequence[tuple[Tensor, Tracked]]) -> Iterator[None]:
        for tensor, known in indices:
            self._known[id(tensor)] = (tensor, known._replace(pins=()))
        try:
            yield
        finally:
            self._known.update((id(tensor), (tensor, known)) for tensor, known in indices)

    def _hand_ranges_on(self, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
        entry = self._known.get(id(args[0])) if args else None
        if entry is None or (entry[1].ranges is None and entry[1].taken is None):
            return
        for tensor in outputs:
            made, given = self._known[id(tensor)][1], entry[1]
            if given.ranges is not None:
                made = made._replace(pins=given.pins, ranges=given.ranges)
            else:  # a single index of a single index is of two axes, which nothing can tie to one choice
                taken = given.taken if made.taken is None else None
                made = made._replace(pins=(*given.pins, *made.pins), taken=taken)
            self._known[id(tensor)] = (tensor, made)

    def _pin_unruled(self, func: Any, args: Any, kwargs: Any, out: Any, failure: Exception | None) -> None:
        """Pin what an operator touches that has no rule, or whose rule has failed."""
        name = str(func.overloadpacket)
        kind: Kind = "operator" if failure is None else "rule"
        reason = f"no rule for the operator {name}"
        if failure is not None:
            name = f"{name} ({type(failure).__name__} in its rule: {failure})"
            reason = f"the rule of the operator {name} does not hold"
        if name not in self.unknown:
            self.unknown[name] = ", in ".join(filter(None, self.here()))
            if failure is None:
                self.stubs[name] = stub(func, args, kwargs, out, self.unknown[name])
        self.pin_all((t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)), reason, kind)
        for tensor in (t for t in tree_leaves(out) if isinstance(t, Tensor)):
            self.put(tensor, self.pinned(tensor.shape, reason, kind))

    def pin_all(self, tensors: Iterable[Tensor], reason: str, kind: Kind = "order") -> None:
        """Pin every axis of some tensors."""
        for tensor in tensors:
            for axis in self[tensor].axes:
                self.pin(axis, reason, kind)

    def _written(self, outputs: Sequence[Tensor]) -> None:
        """Other tensors on the storage of one that was written into may no longer be zero, or of one value."""
        for output in outputs:
            keeps_zero = all(self[output].zero)
            self.picks.overwritten([t for t in self._sharing.get(_storage(output), ()) if t is not output])
            for other in self._sharing.get(_storage(output), ()):
                known = self._known[id(other)][1]
                if other is not output and (known.is_uniform or (any(known.zero) and not keeps_zero)):
                    zero = [zero and keeps_zero for zero in known.zero]
                    self.put(other, known.axes, zero, known.source, pins=known.pins)

    # ------------------------------------------------------------------ the functions' side

    def function(self, func: Any, handler: Callable[..., None] | None, args: Any, kwargs: Any, out: Any) -> None:
        """Account for the sizes that went into a torch function: tied by its handler, or pinned.

        What a handler does not tie is a number inside the function, or written in the code.
        """
        made = tensors_in(out)
        if handler is not None:
            if not args and "input" in kwargs:
                args, kwargs = (kwargs["input"],), {k: v for k, v in kwargs.items() if k != "input"}
            try:
                with self._as_indices((*args[:1], out)):
                    handler(self, out, *args, **kwargs)
            except Exception as error:  # called in a way that the handler does not know: pinned, never wrong
                reason = f"the sizes of {_name_of(func)} cannot be read ({error})"
                self.pin_all([*tensors_in((args, kwargs)), *made], reason, "hidden")
        else:
            for size in sizes_in((args, kwargs)):
                self.on_value(size.expression)
            if self._is_unsettled():
                self.pin_unsettled(f"its size is set inside {_name_of(func)}", (args, kwargs))
        self.settle()
        foreign = [t for t in made if id(t) not in self._known]
        if foreign or (not made and isinstance(out, (np.ndarray, list, torch.UntypedStorage, torch.TypedStorage))):
            reason = f"its values leave torch's operators in {_name_of(func)}"
            self.pin_all(tensors_in((args, kwargs)), reason, "foreign")

    def _is_unsettled(self) -> bool:
        """Whether there are leaves or parts that are not accounted for."""
        return (self.graph.age, len(self.graph.parts)) != self._settled[:2]

    def pin_unsettled(self, reason: str, operands: Any = ()) -> None:
        """Pin the parts made since the last function that neither a constraint nor a dimension of its operands
        accounts for: their sizes are hidden literals."""
        ages, parts, constraints = self._settled
        if self._is_unsettled() and (found := [*self.graph.younger(ages), *self.graph.parts[parts:]]):
            given = [c.axis for c in self.constraints[constraints:]]
            given.extend(axis for tensor in tensors_in(operands) for axis in self.axes_of(tensor))
            known = {tuple(self.graph.leaves(axis)) for axis in given}
            for part in found:
                if tuple(self.graph.leaves(part)) not in known:
                    self.pin(part, reason, "hidden")
        self.settle()

    def settle(self) -> None:
        """The sizes of all axes made so far are accounted for."""
        self._settled = (self.graph.age, len(self.graph.parts), len(self.constraints))


def _name_of(func: Any) -> str:
    return str(getattr(func, "__name__", func))


def _tensors_of(out: Any) -> list[Tensor]:
    """The tensors that an operator returns."""
    if isinstance(out, Tensor):
        return [out]
    flat = out if isinstance(out, tuple) and not any(isinstance(o, (tuple, list)) for o in out) else tree_leaves(out)
    return [t for t in flat if isinstance(t, Tensor)]


def _storage(tensor: Tensor) -> int:
    """What tensors that share memory have in common; 0 for those that have no storage."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0

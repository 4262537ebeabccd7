"""What belongs to one index of a chosen axis: the tokens that chose expert i, and the module that deals with them.

A loop over the experts of a mixture asks of each index i of the router's axis where it was chosen (``idx == i``, or
``one_hot(idx)[..., i]``), hands what it finds to entry i of a module list, and adds the result to what the others gave.
A *pick* is a tensor that is nothing unless its index is chosen: zero everywhere, or without rows. It is followed
through operators that make nothing of nothing; where one does otherwise, the axis is pinned. What an entry of a module
list is given, or has its output multiplied by, ties the entry to the index: then both can go together. So does a
single index of a stack of weights (``self.up[i]``) that a pick is multiplied by, or that is added to its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import proxy

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from topiarist.graph.axis import Axis
from topiarist.graph.reasons import Reason
from topiarist.graph.rules import named
from topiarist.graph.rules.picked import SUMS, Pick, SpoiltError, Use, becomes, check_total, is_positive, summed
from topiarist.graph.rules.values import KEEP_VALUES

if TYPE_CHECKING:
    from topiarist.graph.trace import Trace

aten = torch.ops.aten
_USED = "its indices become values"
_TAKEN = "a single index of it is taken"
_EQUAL = frozenset(named("eq", "ne"))
_BLANKS = frozenset(named("zeros", "zeros_like", "new_zeros"))
_SCATTERS = frozenset(named("scatter", "scatter_"))
_COUNTS = frozenset(named("histc", "bincount"))
_KEEP_HOT = KEEP_VALUES | SUMS | _SCATTERS | _COUNTS


class OneHot(NamedTuple):
    """A tensor that is zero at indices of ``axis`` that are not chosen; of its own axis ``over`` these are the first.
    Each entry may stand for any of ``times`` choices."""

    axis: Axis
    over: Axis
    times: int = 1


class Picks:
    """The picks of one trace, and which entries of which module lists, or indices of which stacks, deal with them."""

    def __init__(self, trace: Trace) -> None:
        self.axes: dict[Axis, Reason] = {}  # of which indices were picked
        self.hits: dict[str, int] = {}  # lines that search for those chosen, and how many there are that never are
        self._trace: Trace = proxy(trace)  # which holds this
        self._entries: dict[str, str] = {}  # entry of a module list → the list
        self._lengths: dict[str, int] = {}  # of the lists
        self._members: dict[tuple[Axis, int], dict[str, None]] = {}  # index → modules that deal with its picks
        self._loose: set[str] = set()  # entries whose outputs count for every token
        self._dealt: dict[Axis, dict[int, set[tuple[Axis, int]]]] = {}  # stack → index → the picks that it deals with
        self._has_stacks = False
        self._of: dict[int, Pick] = {}  # by id of the tensor, which the trace keeps; so do the next two
        self._one_hot: dict[int, OneHot] = {}
        self._blank: set[int] = set()  # tensors of zeros
        self._ends: set[int] = set()
        self._made: dict[int, str] = {}  # what an entry of a list returned for every token
        self._at_work: dict[str, Pick] = {}  # modules that run on rows
        self._given: Pick | None = None  # rows that the operator is given that runs at the moment

    def register(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        """Take in the module lists of a model."""
        names = {id(module): name for name, module in modules}
        for path, module in modules:
            if isinstance(module, nn.ModuleList) and len(module) > 1:
                self._lengths[path] = len(module)
                self._entries.update((names[id(entry)], path) for entry in module)
        held = (p for _, module in modules for p in module._parameters.values() if p is not None)
        self._has_stacks = any(p.dim() > 2 for p in held)

    @property
    def are_followed(self) -> bool:
        """Whether there is anything to tie an index to."""
        return self._has_stacks or bool(self._lengths)

    def forget(self) -> None:
        """The tensors are gone."""
        for held in (self._of, self._one_hot, self._blank, self._ends, self._made, self._at_work):
            held.clear()

    def is_pick(self, tensor: Tensor) -> bool:
        """Whether a tensor is nothing unless some index is chosen."""
        return id(tensor) in self._of

    def hot(self, tensor: Tensor) -> OneHot | None:
        """What is known of a vector that says of each index of an axis whether, or how often, it is chosen."""
        return self._one_hot.get(id(tensor)) if tensor.dim() == 1 else None

    def hit(self, tensor: Tensor) -> Axis | None:
        """The axis of which a vector says whether each index is chosen; from now on this line asks for those that
        are."""
        hot = self.hot(tensor)
        if hot is None:
            return None
        self.hits[self._trace.here()[0]] = tensor.shape[0] - hot.axis.size
        return hot.axis

    def num_hit(self, tensor: Tensor) -> int | None:
        """How many indices can be chosen of the axis that a vector encodes."""
        hot = self.hot(tensor)
        return None if hot is None else hot.axis.size

    def are_ends(self, tensor: Tensor) -> bool:
        """Whether a vector holds, for each index of an axis, where those end that chose it, once they are sorted."""
        return id(tensor) in self._ends

    # ------------------------------------------------------------------ modules

    def enter(self, name: str, args: Any) -> None:
        """A module begins to run."""
        found = [self._of[id(t)] for t in tree_leaves(args) if id(t) in self._of] if self._of else []
        for pick in found if name in self._entries else ():
            self._deals_with(pick, name)
        if found and found[0].rows is not None:
            self._at_work[name] = found[0]

    def leave(self, name: str, outputs: Sequence[Tensor]) -> None:
        """It has returned these."""
        self._at_work.pop(name, None)
        if name in self._entries:
            self._made.update((id(t), name) for t in outputs if id(t) not in self._of)

    def share(self) -> tuple[Axis, int] | None:
        """The axis of which one index has its share of the rows that are computed with at the moment, and of how many
        choices each row may be."""
        found = (self._at_work[name] for name in self._trace.running if name in self._at_work)
        pick = next(found, self._given)
        return None if pick is None else (pick.axis, pick.times)

    def _deals_with(self, pick: Pick, name: str) -> None:
        members = self._members.setdefault((pick.axis, pick.place), {})
        if not any(name.startswith(f"{outer}.") for outer in members):
            members[name] = None

    def lists(self, axis: Axis) -> tuple[str, ...]:
        """The module lists of which entry i deals with index i of ``axis``, and with no other; none where the entries
        of some list deal with it in another way."""
        by_list: dict[str, dict[int, set[str]]] = {}
        for (other, place), names in self._members.items():
            for name in names if self._trace.graph.find(other) is axis else ():
                by_list.setdefault(self._entries[name], {}).setdefault(place, set()).add(name)
        aligned = [path for path, found in by_list.items() if self._is_aligned(path, found, axis.size)]
        others = [found for path, found in by_list.items() if path not in aligned]
        shared = all(len(found) == axis.size and len(set(map(frozenset, found.values()))) == 1 for found in others)
        return tuple(aligned) if shared else ()

    def _is_aligned(self, path: str, found: Mapping[int, set[str]], num: int) -> bool:
        by_place = {i: {f"{path}.{i}"} for i in range(num)}
        return (
            self._lengths[path] == num and found == by_place and self._loose.isdisjoint(set().union(*by_place.values()))
        )

    def stacks(self, axis: Axis) -> tuple[Axis, ...]:
        """The axes of weights of which index i deals with index i of ``axis``, and with no other; none where one of
        them is used in another way."""
        find, found = self._trace.graph.find, []
        for stack, dealt in self._dealt.items():
            picks = {i: {(find(other), place) for other, place in given} for i, given in dealt.items()}
            if any(other is axis for given in picks.values() for other, _ in given):
                if picks != {i: {(axis, i)} for i in range(axis.size)} or find(stack).size != axis.size:
                    self._trace.pin(stack, _TAKEN)
                    return ()
                found.append(stack)
        return tuple(found)

    # ------------------------------------------------------------------ operators

    def compares(self, packet: Any, args: Sequence[Any]) -> bool:
        """Whether an operator asks where an index was chosen, or which one was found, and no more of the values."""
        if packet not in _EQUAL or type(args[1]) is not int or not self.are_followed:
            return False
        return packet is aten.eq or self._trace.searches.is_found(args[0])

    def dealt_with(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The single indices of weights that an operator is given beside a pick: `follow` says what becomes of them."""
        self._given = None
        if not self._of:
            return []
        tensors = _operands(args, kwargs)
        picks = [self._of[id(t)] for t in tensors if id(t) in self._of]
        self._given = next((pick for pick in picks if pick.rows is not None), None)
        return [t for t in tensors if self._trace.taken(t) is not None] if picks else []

    def put_one_hot(self, tensor: Tensor, axis: Axis, over: Axis) -> None:
        """Say that a tensor is zero at indices of ``axis`` that are not chosen, the first ones of its own ``over``."""
        self._one_hot[id(tensor)] = OneHot(axis, over)

    def follow(self, packet: Any, args: Sequence[Any], kwargs: Any, outputs: Sequence[Tensor]) -> None:
        """Say of what an operator returned whether it is a pick, and pin the axis where it cannot be followed."""
        tensors = _operands(args, kwargs)
        given = {id(t): self._of[id(t)] for t in tensors if id(t) in self._of}
        made = [self._made[id(t)] for t in tensors if id(t) in self._made]
        hot = self._scattered(packet, args) or (self._one_hot.get(id(tensors[0])) if tensors else None)
        is_blank = packet in _BLANKS or (packet in KEEP_VALUES and id(tensors[0]) in self._blank)
        are_ends = packet in KEEP_VALUES and id(tensors[0]) in self._ends and tensors[0].shape == outputs[0].shape
        self.overwritten(outputs)
        if given:
            self._used(packet, args, tensors, given, made, outputs)
        elif self.compares(packet, args):
            self._compared(args, outputs)
        elif made and packet in KEEP_VALUES:
            self._made.update((id(out), made[0]) for out in outputs)
        else:
            self._loose.update(made)
            if is_blank:
                self._blank.update(map(id, outputs))
            elif are_ends:
                self._ends.update(map(id, outputs))
            elif hot is not None:
                self._of_one_hot(packet, args, hot, outputs)

    def overwritten(self, tensors: Sequence[Tensor]) -> None:
        """These tensors hold something new."""
        for tensor in tensors:
            for held in (self._of, self._one_hot, self._made):
                held.pop(id(tensor), None)
            self._blank.discard(id(tensor))
            self._ends.discard(id(tensor))

    def _scattered(self, packet: Any, args: Sequence[Any]) -> OneHot | None:
        """What is written among zeros, at the places that were chosen, or counts how often they were."""
        if packet in _COUNTS:
            ranges = self._trace.indices(args[0]).ranges
            return None if ranges is None else OneHot(ranges, ranges)
        if packet not in _SCATTERS or id(args[0]) not in self._blank:
            return None
        ranges = self._trace.indices(args[2]).ranges
        return None if ranges is None else OneHot(ranges, ranges)

    def _compared(self, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
        ranges = self._trace.indices(args[0]).ranges
        if ranges is not None and not self._trace.searches.is_found(args[0]):
            self._begin(Pick(ranges, args[1]), outputs)

    def _of_one_hot(self, packet: Any, args: Sequence[Any], hot: OneHot, outputs: Sequence[Tensor]) -> None:
        """A single index of a one-hot encoding is a pick; what keeps the zeros stays one-hot."""
        find, trace = self._trace.graph.find, self._trace
        if packet is aten.select and find(trace.axes_of(args[0])[args[1]]) is find(hot.over):
            place = args[2] % args[0].shape[args[1]]
            if place < hot.axis.size:
                trace.drop_pins(outputs)
                self._begin(Pick(hot.axis, place, hot.times), outputs)
        elif packet is aten.cumsum and args[0].dim() == 1:
            self._ends.update(map(id, outputs))
        elif packet in _KEEP_HOT or is_positive(packet, args):
            times = hot.times * summed(args[0], outputs[0]) if packet in SUMS else hot.times
            for out in outputs:
                if any(find(axis) is find(hot.over) for axis in trace.axes_of(out)):
                    self._one_hot[id(out)] = hot._replace(times=times)

    def _begin(self, pick: Pick, outputs: Sequence[Tensor]) -> None:
        self.axes.setdefault(pick.axis, Reason(_USED, "order", *self._trace.here()))
        self._of.update((id(out), pick) for out in outputs)

    def _used(
        self, packet: Any, args: Sequence[Any], tensors: Sequence[Tensor], given: Mapping[int, Pick],
        made: Sequence[str], outputs: Sequence[Tensor],
    ) -> None:  # fmt: skip
        graph = self._trace.graph
        taken = [found for t in tensors if (found := self._trace.taken(t)) is not None]
        pick: Pick | None = None
        try:
            use = Use(packet, args, tensors, given, outputs, self._trace.axes_of, graph)
            if len({(graph.find(pick.axis), pick.place) for pick in given.values()}) > 1:
                check_total(use)
            else:
                for name in made:
                    self._deals_with(next(iter(given.values())), name)
                pick = becomes(use)
        except SpoiltError:
            for each in given.values():
                self._trace.pin(each.axis, _USED)
        for stack, index in taken:
            if pick is None:
                self._trace.pin(stack, _TAKEN)
            else:
                self._dealt.setdefault(stack, {}).setdefault(index, set()).add((pick.axis, pick.place))
        if pick is not None:
            self._of.update((id(out), pick) for out in outputs)


def _operands(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that an operator is given, alone or in lists."""
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend([each for each in value if isinstance(each, Tensor)])
    return found

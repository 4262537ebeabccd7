"""What becomes of a tensor that is nothing unless some index is chosen; see `topiarist.graph.picks`.

Where what an operator returns is nothing as well, it is a pick again; where it is the other operand, or that with
nothing added, it is no more than an ordinary tensor. Anything else is spoilt: it would stay when the index goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from topiarist.graph.rules import named
from topiarist.graph.rules.pointwise import KEEPS_ZERO
from topiarist.graph.rules.values import KEEP_VALUES

if TYPE_CHECKING:
    from topiarist.graph.axis import Axis, AxisGraph

aten = torch.ops.aten
_WRITES = frozenset(
    named(
        "index_add", "index_add_", "index_copy", "index_copy_", "index_put", "index_put_", "scatter_add", "scatter_add_"
    )
)  # fmt: skip
_LOOKUPS = frozenset(named("index", "index_select", "gather", "embedding"))
SUMS = frozenset(named("sum", "nansum", "any", "amax"))
_PRODUCTS = frozenset(named("mm", "bmm", "mv", "dot"))  # without a bias
_JOINS = frozenset(named("cat", "stack"))
_COMPARISONS = frozenset(named("gt", "ne"))
_NEUTRAL = frozenset({"add", "sub", "bitwise_or", "logical_or", "bitwise_xor", "logical_xor"})  # x ∘ 0 = x
_MASKS = (torch.bool, torch.uint8)


class Pick(NamedTuple):
    """A tensor that is zero everywhere unless index ``place`` of ``axis`` is chosen; with ``rows``, an axis of it, one
    that has no rows then. Each entry, or row, may stand for any of ``times`` choices."""

    axis: Axis
    place: int
    times: int = 1
    rows: Axis | None = None


class SpoiltError(Exception):
    """An operator makes something of nothing."""


class Use(NamedTuple):
    """An operator and what it is given and returns; ``picks`` are the picks among that, by the id of the tensor."""

    packet: Any
    args: Sequence[Any]
    tensors: Sequence[Tensor]
    picks: Mapping[int, Pick]
    outputs: Sequence[Tensor]
    axes_of: Callable[[Tensor], tuple[Axis, ...]]
    graph: AxisGraph

    def is_pick(self, value: Any) -> bool:
        """Whether a value is one of the picks."""
        return id(value) in self.picks

    @property
    def all_picks(self) -> bool:
        """Whether all tensors that are given are."""
        return all(map(self.is_pick, self.tensors))


def becomes(use: Use) -> Pick | None:
    """The pick that an operator returns, None where what it returns is an ordinary tensor.

    Raises:
        SpoiltError: it returns something where it is given nothing.
    """
    pick = next((p for p in use.picks.values() if p.rows is not None), next(iter(use.picks.values())))
    if use.packet in KEEP_VALUES:
        return pick
    if use.packet in _WRITES and not use.is_pick(use.args[0]):
        return None
    return _of_zeros(use, pick) if pick.rows is None else _of_rows(use, pick, pick.rows)


def check_total(use: Use) -> None:
    """Picks of several indices may be added up: each is a term that goes with its index.

    Raises:
        SpoiltError: the operator does something else with them.
    """
    constants = [a for a in use.args if isinstance(a, (int, float)) and not _is_zero(a)]
    if _name_of(use) not in _NEUTRAL or constants or any(pick.rows is not None for pick in use.picks.values()):
        raise SpoiltError


def _name_of(use: Use) -> str:
    return str(use.packet.__name__).removesuffix("_")


def summed(x: Tensor, out: Tensor) -> int:
    """How many entries of ``x`` one of ``out`` is made of."""
    return x.numel() // max(1, out.numel())


def is_positive(packet: Any, args: Sequence[Any]) -> bool:
    """Whether an operator asks where something is not zero, or more."""
    return packet in _COMPARISONS and _is_zero(args[1])


def _of_rows(use: Use, pick: Pick, rows: Axis) -> Pick:
    """What has no rows stays so, whatever the operator, as long as it has them; their sum is zero."""
    if use.packet in _JOINS and not use.all_picks:
        raise SpoiltError
    leaves = {*use.graph.leaves(rows)}
    held = {leaf for out in use.outputs for axis in use.axes_of(out) for leaf in use.graph.leaves(axis)}
    if leaves <= held:
        return pick
    if use.packet in _LOOKUPS:
        return pick._replace(rows=_new_axis(use))
    if use.packet in SUMS or use.packet in _PRODUCTS:
        return pick._replace(rows=None)
    raise SpoiltError


def _of_zeros(use: Use, pick: Pick) -> Pick | None:
    packet, first = use.packet, use.is_pick(use.args[0])
    if packet is aten.nonzero:
        return pick._replace(rows=use.axes_of(use.outputs[0])[0])
    if packet in _LOOKUPS:
        return _looked_up(use, pick)
    if packet in SUMS:
        return pick._replace(times=pick.times * summed(use.args[0], use.outputs[0]))
    if packet in _PRODUCTS or (packet in _JOINS and use.all_picks):
        return pick
    if first and is_positive(packet, use.args):
        return pick
    if packet is aten.where and use.is_pick(use.args[0]):
        other = use.args[2]
        return pick if use.is_pick(other) or other.dim() == 0 else None
    if packet in (aten.masked_fill, aten.masked_fill_) and (not first or _is_zero(use.args[2])):
        return pick if first else None
    return _pointwise(use, pick, first)


def _looked_up(use: Use, pick: Pick) -> Pick:
    """Entries of a pick are zero; of a table, those that a mask chooses are rows."""
    table, *indices = use.args
    if use.is_pick(table):
        return pick
    masks = [i for i in (indices[0] if isinstance(indices[0], (list, tuple)) else ()) if use.is_pick(i)]
    if not masks or masks[0].dtype not in _MASKS:
        raise SpoiltError  # entry 0 of the table is not nothing
    return pick._replace(rows=_new_axis(use))


def _new_axis(use: Use) -> Axis:
    """The axis that a lookup makes: as long as what is looked up."""
    known = {axis for tensor in use.tensors for axis in map(use.graph.find, use.axes_of(tensor))}
    new = (axis for axis in use.axes_of(use.outputs[0]) if use.graph.find(axis) not in known)
    return next(new, use.graph.one)


def _pointwise(use: Use, pick: Pick, first: bool) -> Pick | None:
    name = _name_of(use)
    keeps = KEEPS_ZERO.get(name, False)
    constants = [a for a in use.args if isinstance(a, (int, float)) and not _is_zero(a)]
    if keeps == "any" or (first and keeps in (True, "first")):
        return pick
    if keeps == "all" and not constants:
        if use.all_picks:
            return pick
        if name in _NEUTRAL:
            return None
    raise SpoiltError


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0

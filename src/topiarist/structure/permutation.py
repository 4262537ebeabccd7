"""Channel permutations before ``n:m``: the same function, large weights spread over the groups (Pool, Yu 2021).

Which m inputs are neighbours is an accident of the order of channels. Reordering an axis in every tensor that shares
it, the layer that makes it and all that read it, leaves the function as it is and changes which weights compete.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import torch
from torch import Tensor, nn

from topiarist.asked import patterns
from topiarist.errors import InputError
from topiarist.graph import Axes, AxisInfo, trace
from topiarist.graph.axis import Axis, AxisGraph
from topiarist.graph.copies import model_tensors
from topiarist.structure.base import Structure, parameters_of
from topiarist.structure.entries import last, weights_to_cut
from topiarist.structure.nm import NM, best_of_groups
from topiarist.structure.words import named

_GAIN = 1e-9  # relative to what is kept: less is rounding
_WHOLE = 4  # groups up to this size are divided anew in all ways, C(8, 4) / 2 = 35; of larger ones single channels swap


@dataclass(frozen=True, eq=False)
class Permuted:
    """What `permute` returns: the model in its new order, Σ|w| that n:m keeps ``before`` and ``after``, and per axis
    that was reordered which old index stands at each new one (int64 ``(size,)``)."""

    model: nn.Module
    before: float
    after: float
    orders: Mapping[str, Tensor]


def permute(
    model: nn.Module,
    example_inputs: object,
    structure: str | Structure = "2:4",
    *,
    keep: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Permuted:
    """A copy of ``model`` that is the same function, with channels in an order in which ``n:m`` keeps more magnitude.

    Each axis that may shrink is searched by itself: pairs of groups of m channels are divided anew as long as Σ|w| of
    the n best of every m grows, over all layers that read the axis. An order that would cost another layer more (one
    that reads channels × pixels, say) is not taken, so that what is kept never falls. Greedy, so not always the best
    there is; of two groups it is. The cost grows with (channels / m)² · weights.

    Args:
        keep: fnmatch patterns over module names, as for `topiarist.plan`: their weights are not counted.
        progress: called with the number of axes done and of all axes.

    Raises:
        InputError: ``structure`` is not n:m, or a pattern of ``keep`` matches no module.
        TraceError: the model does not run on ``example_inputs``.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> with torch.no_grad():
        ...     _ = net[2].weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]]))
        >>> found = permute(net, torch.zeros(1, 3), "2:4", keep=["0"])
        >>> found.before, found.after
        (7.0, 10.0)
    """
    structure = named(structure) if isinstance(structure, str) else structure
    if not isinstance(structure, NM):
        raise InputError(f"an order of channels matters to n:m alone, got {structure}; try '2:4'")
    axes, moved = trace(model, example_inputs), copy.deepcopy(model)
    names = [n for n in weights_to_cut(axes, patterns(keep)) if n in axes.matrices()]
    before, orders = _kept(axes, moved, names, structure), {}
    free = [axis for axis in axes.axes if not axis.pins]
    for done, axis in enumerate(free, 1):
        order = _order(axes, axis, moved, names, structure)
        if order is not None:
            orders[axis.name] = order
        if progress is not None:
            progress(done, len(free))
    return Permuted(moved, before, _kept(axes, moved, names, structure), orders)


def reorder(model: nn.Module, axes: Axes, axis: AxisInfo, order: Tensor) -> None:
    """Put the indices of one axis into another order, in place, in every tensor that shares it."""
    for name, tensor, _ in model_tensors(model):
        info = axes.tensors[name]
        for dim, own in enumerate(info.axes if info.tied_to is None else ()):
            if any(leaf is axes.graph.find(axis.leaf) for leaf in axes.graph.leaves(own)):
                places = _places(axes.graph, own, axes.graph.find(axis.leaf), order)
                tensor.data = tensor.data.index_select(dim, places.to(tensor.device))


def _places(graph: AxisGraph, axis: Axis, leaf: Axis, order: Tensor) -> Tensor:
    """Which old position of ``axis`` stands at each new one when the indices of ``leaf`` are reordered."""
    axis = graph.find(axis)
    if axis.form == "leaf":
        return order if axis is leaf else torch.arange(axis.size)
    places = torch.zeros(0 if axis.form == "sum" else 1, dtype=torch.long)
    for part in axis.parts:
        inner = _places(graph, part, leaf, order)
        if axis.form == "sum":
            places = torch.cat([places, inner + len(places)])
        else:
            places = (places[:, None] * len(inner) + inner[None, :]).flatten()
    return places


def _order(axes: Axes, axis: AxisInfo, model: nn.Module, names: Sequence[str], nm: NM) -> Tensor | None:
    """Reorder one axis of the model for the better; the order, or None where none is better."""
    leaf, known = axes.graph.find(axis.leaf), axes.matrices()
    readers = {n: [axes.tensors[n].axes[d] for d in known[n].inner] for n in names}
    readers = {n: held for n, held in readers.items() if any(leaf in {*axes.graph.leaves(a)} for a in held)}
    whole = [n for n, held in readers.items() if [axes.graph.find(a) for a in held] == [leaf]]
    if not whole or axis.size <= nm.m:
        return None
    parameters = parameters_of(model)
    rows = [last(parameters[n].detach().abs().double(), axes.shape(n), known[n].inner) for n in whole]
    order = search(torch.cat(rows), nm.n, nm.m)
    before = _kept(axes, model, list(readers), nm)
    reorder(model, axes, axis, order)
    if _kept(axes, model, list(readers), nm) > before * (1 + _GAIN):
        return order
    reorder(model, axes, axis, torch.argsort(order))
    return None


def _kept(axes: Axes, model: nn.Module, names: Sequence[str], nm: NM) -> float:
    """Σ|w| of what n:m keeps of some weights."""
    parameters, known = parameters_of(model), axes.matrices()
    rows = [last(parameters[n].detach().abs().double(), axes.shape(n), known[n].inner) for n in names]
    return sum(float(kept(matrix, nm.n, nm.m)) for matrix in rows)


def kept(matrix: Tensor, n: int, m: int) -> Tensor:
    """Σ of the n highest of every m in a row of non-negative magnitudes ``(rows, inputs)``."""
    return (matrix * best_of_groups(matrix, n, m)).sum()


def search(matrix: Tensor, n: int, m: int) -> Tensor:
    """An order of the columns of magnitudes ``(rows, inputs)`` in which the n best of every m keep more, or as much.

    Every pair of whole groups is divided anew in the best way, again and again until no pair gains; columns beyond the
    last whole group stay where they are.

    Returns:
        Which old column stands at each new place: int64 ``(inputs,)``.
    """
    num_rows, num = matrix.shape
    order, ways = torch.arange(num), _divisions(m).to(matrix.device)
    gain = _GAIN * max(float(matrix.sum()), 1e-300)
    pairs = list(combinations(range(num // m), 2))
    stale = set(range(num // m))
    while stale:
        fresh: set[int] = set()
        for a, b in pairs:
            if a in stale or b in stale or a in fresh or b in fresh:
                places = torch.cat([torch.arange(g * m, (g + 1) * m) for g in (a, b)])
                tried = matrix[:, order[places].to(matrix.device)][:, ways].view(num_rows, len(ways), 2, m)
                sums = tried.topk(n, dim=-1).values.sum(dim=(0, 2, 3))
                best = int(sums.argmax())
                if sums[best] > sums[0] + gain:
                    order[places] = order[places][ways[best].cpu()]
                    fresh |= {a, b}
        stale = fresh
    return order


def _divisions(m: int) -> Tensor:
    """Ways to divide the columns of two groups anew, the present one first: int64 ``(ways, 2m)``."""
    columns = range(2 * m)
    if m <= _WHOLE:
        firsts = [(0, *rest) for rest in combinations(columns[1:], m - 1)]
        return torch.tensor([[*first, *(c for c in columns if c not in first)] for first in firsts])
    ways = [list(columns)]
    for a, b in product(columns[:m], columns[m:]):
        way = list(columns)
        way[a], way[b] = b, a
        ways.append(way)
    return torch.tensor(ways)

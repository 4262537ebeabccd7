"""Frees the axes whose sizes become values that weights can make up for, in both modes; see `topiarist.graph.folds`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from topiarist.graph.axis import Axis
from topiarist.graph.folds import Fold, Found, folds
from topiarist.graph.groups import Axes
from topiarist.graph.kernels import Kernels
from topiarist.graph.multiples import Multiples, Powers
from topiarist.graph.rehearsal import Performance, Stage, faults, without
from topiarist.graph.sizes import Constraint, atoms_in, paths_in
from topiarist.graph.trace import Trace


def fold(state: Trace, collect: Callable[[], Axes], stage: Stage) -> Collection[int]:
    """Take values that weights can make up for out of the constraints; the places of their numbers in a performance."""
    if not _may_follow(state.constraints):
        return ()
    axes = _as_if_free(state, collect)
    found = _in_mode(axes, state.values["evaluation"], stage, training=False)
    trained = Found({})
    if not state.modes.are_one:
        trained = _in_mode(axes, state.values["training"], stage, training=True) if found.folds else trained
        if not _agree(found, trained):
            return ()
    known = {(c.where, c.module) for c in found.values}
    again = [c for c in state.values["compared"] if (c.where, c.module) in known]  # what ran twice computed the same
    gone = {id(c) for c in (*found.values, *trained.values, *again)}
    state.constraints = [c for c in state.constraints if id(c) not in gone]
    state.folds = found.folds
    return found.sites


def _may_follow(constraints: Sequence[Constraint]) -> bool:
    """Whether a size that becomes a value is that of an axis, or an attribute that sizes of axes are made of."""
    sizes = {path for c in constraints if not c.is_value for path in paths_in(c.expression)}
    values = [c.expression for c in constraints if c.is_value]
    return any(isinstance(atom, Axis) for e in values for atom in atoms_in(e)) or any(
        path in sizes for e in values for path in paths_in(e)
    )


def _as_if_free(state: Trace, collect: Callable[[], Axes]) -> Axes:
    """The axes if no size became a value; what is pinned in passing is not pinned afterwards."""
    leaves = {leaf for axes in state.sources.values() for axis in axes for leaf in state.graph.leaves(axis)}
    pins = {leaf: dict(leaf.pins) for leaf in leaves}
    constraints, state.constraints = state.constraints, [c for c in state.constraints if not c.is_value]
    axes = collect()
    state.constraints = constraints
    for leaf, before in pins.items():
        leaf.pins = before
    return axes


def _in_mode(axes: Axes, values: Sequence[Constraint], stage: Stage, training: bool) -> Found:
    def perform(sizes: Mapping[Axis, int]) -> Performance:
        return stage.perform(axes, sizes, training)

    def way(sizes: Mapping[Axis, int]) -> Performance:
        performance = perform(sizes)
        return without(performance, range(len(performance)))

    shapes = {name: axes.shape(name) for name, info in axes.tensors.items() if info.kind == "parameter"}

    def reads(sites: Collection[int]) -> Sequence[Powers]:
        def listen(kernels: Kernels, tensors: Mapping[str, Tensor], inputs: Any) -> Multiples:
            return Multiples(kernels, {n: t for n, t in tensors.items() if n in shapes}, inputs, sites)

        return stage.listened(axes, {}, training, listen).reads

    def held() -> Collection[Axis]:
        return faults(axes, way({}), way)  # by another way that the smaller model goes

    return folds(axes, values, held, perform, reads, shapes)


def _agree(found: Found, other: Found) -> bool:
    """Whether the same weights make up for the same in both modes."""
    return {g: _said(own) for g, own in found.folds.items()} == {g: _said(own) for g, own in other.folds.items()}


def _said(folds: Sequence[Fold]) -> list[tuple[object, ...]]:
    said = [(f.power, sorted((n, [p.tolist() for p in own]) for n, own in f.entries.items())) for f in folds]
    return sorted(said, key=repr)

"""Why an axis is tied, pinned or inexact, in words: a table of all axes, and a paragraph on each."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

from topiarist.errors import InputError, nearest
from topiarist.graph.reasons import FIXED

if TYPE_CHECKING:
    from topiarist.graph.groups import Axes, AxisInfo

Status = Literal["free", "inexact", "pinned"]

WIDTH = 100  # columns of a table that goes to no terminal
_NAME, _TIES = 36, 34  # columns for the name of an axis, which is folded beyond, and for what it ties


@dataclass(frozen=True)
class Row:
    """One axis: its name, size and status, the reasons in words, what to do about them, the tensors it lives in
    (``tensor:dimension``), and the fractions of the parameters and MACs that hang on it."""

    name: str
    size: int
    status: Status
    reasons: tuple[str, ...]
    advice: tuple[str, ...]
    tensors: tuple[str, ...]
    params: float
    macs: float
    is_fixed: bool  # pinned by what no change of the code frees: an input, an output, the extent of a kernel


def row(axes: Axes, axis: AxisInfo) -> Row:
    """What is known of one axis, for tables."""
    return Row(
        name=axis.name,
        size=axis.size,
        status=status(axis),
        reasons=tuple(map(str, axis.pins or axis.inexact)),
        advice=tuple(_advice(axis)),
        tensors=tuple(dict.fromkeys(f"{m.tensor}:{m.dim}" for m in axis.members)),
        params=axes.share(axis),
        macs=axes.share(axis, "macs"),
        is_fixed=bool(axis.pins) and {reason.kind for reason in axis.pins} <= FIXED,
    )


@dataclass(frozen=True)
class Tie:
    """One layer that holds an axis: whether it returns the axis or only reads it, and the fraction of the model's
    parameters that hangs on the axis there. ``depth`` is the layer's place in the order in which the layers ran."""

    layer: str
    depth: int
    returns: bool
    params: float


def ties(axes: Axes, axis: AxisInfo) -> list[Tie]:
    """The layers that hold an axis in a matrix, in the order in which they ran; norms and biases lie between them."""
    tensors = {m.tensor for m in axis.members if len(axes.tensors[m.tensor].axes) > 1}
    found = {name.rpartition(".")[0] for name in tensors if axes.tensors[name].kind == "parameter"}
    return [
        Tie(
            layer,
            axes.depths[layer],
            any(axis.leaf in axes.graph.leaves(returned) for returned in axes.outputs.get(layer, ())),
            axes.layer_share(axis, layer),
        )
        for layer in sorted(found, key=axes.depths.__getitem__)
    ]


def rows(axes: Axes) -> list[Row]:
    """One row an axis."""
    return [row(axes, axis) for axis in axes.axes]


def status(axis: AxisInfo) -> Status:
    """``"pinned"``, ``"inexact"`` (free, but no mask equals a cut) or ``"free"``."""
    if axis.pins:
        return "pinned"
    return "inexact" if axis.inexact else "free"


def summary(axes: Axes, width: int = WIDTH) -> str:
    """A table of every axis as text, ``width`` columns wide, and the operators without a rule.

    Extents of kernels and images are counted beneath the table; long names are folded.
    """
    shown = [row(axes, axis) for axis in axes.axes if not is_extent(axis)]
    first = min(_NAME, max((len(each.name) for each in shown), default=4))
    head = f"{'axis':{first}}  {'size':>5}  params   MACs  status   "
    lines = [f"{head}ties and reasons"]
    for each in shown:
        numbers = f"{each.size:5}  {each.params:6.3f} {each.macs:6.3f}  {each.status:9}"
        said = textwrap.wrap(_said(each), max(20, width - len(head)), break_on_hyphens=False)
        names = [each.name[i : i + first] for i in range(0, len(each.name), first)]
        for i, (name, text) in enumerate(zip_longest(names, said, fillvalue="")):
            lines.append(f"{name:{first}}  {numbers if i == 0 else '':{len(numbers)}}{text}".rstrip())
    extents = len(axes.axes) - len(shown)
    lines += [f"and {extents} extents of kernels and images, pinned"] if extents else []
    return "\n".join([*lines, *unknown(axes)])


def unknown(axes: Axes) -> list[str]:
    """What to say of operators without a rule: each once, with its first source line and the stub of a rule."""
    lines = []
    for name, where in axes.unknown_operators.items():
        lines.append(f"no rule for {name}, first at {where}: what it touches is pinned")
        if name in axes.stubs:
            lines += ["a rule that frees it begins like this (docs/rules.md):", "", axes.stubs[name]]
    return lines


def explain(axes: Axes, name: str) -> str:
    """Everything known of an axis, or of the axes that a tensor or module holds.

    Raises:
        InputError: nothing has that name.
    """
    chosen = [
        axis
        for axis in axes.axes
        if axis.name == name
        or any(name in (m.tensor, f"{m.tensor}:{m.dim}") or m.tensor.startswith(f"{name}.") for m in axis.members)
    ]
    if not chosen:
        known = [*(a.name for a in axes.axes), *axes.tensors, *axes.modules]
        raise InputError(f"no axis, tensor or module is called {name!r} ({nearest(name, known)})")
    return "\n".join(_paragraph(axes, axis) for axis in chosen)


def _paragraph(axes: Axes, axis: AxisInfo) -> str:
    known = row(axes, axis)
    lines = [
        f"{axis.name}: {axis.size} {'heads' if axis.is_head else 'indices'}, "
        f"{'free, inexact' if known.status == 'inexact' else known.status}; "
        f"{known.params:.3f} of the parameters and {known.macs:.3f} of the MACs hang on it",
        f"  lives in {', '.join(_by_module(axes, axis))}",
    ]
    if axis.lists:
        lines.append(f"  entry i of {', '.join(axis.lists)} goes with index i")
    if axis.step:
        own = dict(axis.step)[axis.name]
        others = ", ".join(f"{num} of {name}" for name, num in axis.step if name != axis.name)
        lines.append(f"  shrinks by {own} at a time" + (f", together with {others}" if others else ""))
    lines += [f"  the code says a number with its size, {fold.where}: {fold}" for fold in axes.folds_of(axis)]
    lines += [f"  pinned because {reason}{_inside(reason.module, reason)}" for reason in axis.pins]
    lines += [f"  inexact because {reason}{_inside(reason.module, reason)}" for reason in axis.inexact]
    what = "to know" if known.is_fixed or not axis.pins else "to free it"
    return "\n".join([*lines, *(f"  {what}: {advice}" for advice in _advice(axis))])


def _inside(module: str, said: str) -> str:
    return f", in {module}" if module and not said.endswith(f", in {module}") else ""


def _advice(axis: AxisInfo) -> list[str]:
    """One sentence for each kind of reason: while an axis is pinned, that it is inexact beside does not matter."""
    return list(dict.fromkeys(reason.advice for reason in axis.pins or axis.inexact))


def _by_module(axes: Axes, axis: AxisInfo) -> Iterable[str]:
    """``conv1 (Conv2d): weight:0, bias:0`` for each module that holds the axis."""
    held: dict[str, dict[str, None]] = defaultdict(dict)
    for member in axis.members:
        module, _, tensor = member.tensor.rpartition(".")
        held[module][f"{tensor}:{member.dim}"] = None
    for module, tensors in held.items():
        yield f"{module} ({axes.modules[module]}) {' '.join(tensors)}" if module else " ".join(tensors)


def _ties(row: Row) -> str:
    """The modules beside the axis' own that hold it, as many as there is room for, and how many more there are."""
    modules = list(dict.fromkeys(tensor.rpartition(":")[0].rpartition(".")[0] for tensor in row.tensors))[1:]
    shown = ""
    for num, module in enumerate(modules):
        longer = f"{shown}, {module}" if shown else module
        if len(longer) > _TIES and shown:
            return f"ties {shown} +{len(modules) - num}"
        shown = longer
    return f"ties {shown}" if shown else ""


def _said(row: Row) -> str:
    """The first reason, and what the axis ties."""
    more = f" (and {len(row.reasons) - 1} more)" if len(row.reasons) > 1 else ""
    return "; ".join(filter(None, [*(reason + more for reason in row.reasons[:1]), _ties(row)]))


def is_extent(axis: AxisInfo) -> bool:
    """Whether an axis is pinned as the extent of a kernel or an image, and as nothing else."""
    return bool(axis.pins) and all(reason.kind == "spatial" for reason in axis.pins)

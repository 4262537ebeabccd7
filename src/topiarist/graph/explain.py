"""Why an axis is tied, pinned or inexact, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from topiarist.errors import InputError, nearest

if TYPE_CHECKING:
    from topiarist.graph.groups import Axes, AxisInfo


def rows(axes: Axes) -> list[dict[str, str | int | float]]:
    """One row an axis, for tables: name, size, status, reason, tied tensors, share of the parameters."""
    return [
        {
            "name": axis.name,
            "size": axis.size,
            "status": status(axis),
            "reason": "; ".join(axis.pins or axis.inexact),
            "ties": len({m.tensor for m in axis.members}),
            "share": axes.share(axis),
            "where": ", ".join(dict.fromkeys(f"{m.tensor}:{m.dim}" for m in axis.members)),
        }
        for axis in axes.axes
    ]


def status(axis: AxisInfo) -> str:
    """``"pinned"``, ``"free"``, or ``"free, inexact"``."""
    if axis.pins:
        return "pinned"
    return "free, inexact" if axis.inexact else "free"


def summary(axes: Axes) -> str:
    """A table of every axis, one a line: name, size, status, the share of parameters that hang on it, the reason."""
    table = rows(axes)
    width = max([len(str(row["name"])) for row in table], default=4)
    lines = [f"{'axis':{width}}  size  ties  params  status"]
    for row in table:
        line = f"{row['name']:{width}}  {row['size']:4}  {row['ties']:4}  {row['share']:6.3f}  {row['status']}"
        lines.append(line + (f": {row['reason']}" if row["reason"] else ""))
    if axes.unknown_operators:
        lines.append("operators without a rule (what they touch is pinned):")
        lines.extend(f"  {name}, first at {where}" for name, where in axes.unknown_operators.items())
    return "\n".join(lines)


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
    where = ", ".join(dict.fromkeys(f"{m.tensor}:{m.dim}" for m in axis.members))
    lines = [
        f"{axis.name}: {axis.size} {'heads' if axis.is_head else 'indices'}, {status(axis)}, "
        f"{axes.share(axis):.3f} of the parameters",
        f"  lives in {where}",
    ]
    if axis.step:
        own = dict(axis.step)[axis.name]
        others = ", ".join(f"{num} of {name}" for name, num in axis.step if name != axis.name)
        lines.append(f"  shrinks by {own} at a time" + (f", together with {others}" if others else ""))
    lines.extend(f"  pinned because {reason}" for reason in axis.pins)
    lines.extend(f"  inexact because {reason}" for reason in axis.inexact)
    advice = _advice(axis)
    return "\n".join([*lines, *([f"  to free it: {advice}"] if advice else [])])


def _advice(axis: AxisInfo) -> str:
    reasons = " ".join(axis.pins)
    if "no rule for the operator" in reasons:
        return "register a rule for that operator with @topiarist.graph.rule(...)"
    if "written in the code" in reasons or "the code computes" in reasons:
        return "take the size from the tensor's shape, or keep it in a module attribute that describes this axis alone"
    if "becomes a value" in reasons or "sets the default scale" in reasons:
        return "compute the number once in __init__, or pass scale= explicitly"
    if "input" in reasons or "output" in reasons or "spatial" in reasons:
        return "it is part of what the model takes or returns, and stays"
    return ""

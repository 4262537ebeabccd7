"""One model through everything: trace, cut half of every axis, shrink, run, verify, save, load. One JSON line out."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from families import TooLargeError, declare_missing_operators, zoos
from torch import nn
from torch.utils._pytree import tree_map

import topiarist
from topiarist.errors import TopiaristError
from topiarist.graph import Axes, trace
from topiarist.graph.reasons import FIXED
from topiarist.inputs import call
from topiarist.outputs import tensors_in
from topiarist.plan import Plan, Slice
from topiarist.planning import Planner
from topiarist.structure import Channel
from topiarist.testing.invariants import completed

Row = dict[str, Any]


def examine(zoo: str, name: str) -> Row:
    """What became of one model: a status, figures, and the reasons for what was not cut."""
    row: Row = {"name": name, "seconds": {}}
    torch.manual_seed(0)
    try:
        model, inputs = zoos()[zoo].build(name)
    except TooLargeError as error:
        return {**row, "status": "skipped", "reason": str(error)}
    except Exception as error:  # whatever a library may raise
        return {**row, "status": "not built", "reason": f"{type(error).__name__}: {error}"[:400]}
    _randomise_statistics(model)
    try:
        _cut(model.eval(), inputs, row, name, zoo)
    except TopiaristError as error:
        return {**row, "status": "refused", "reason": f"{type(error).__name__}: {error}"[:600]}
    except Exception as error:  # what must not happen
        return {**row, "status": "failed", "reason": f"{type(error).__name__}: {error}"[:600]}
    return row


def _cut(model: nn.Module, inputs: Any, row: Row, name: str, zoo: str) -> None:
    clock = row["seconds"]
    with _timed(clock, "trace"):
        axes = trace(model, inputs)
    row.update(_described(axes))
    planner = Planner(model, axes, Channel())
    half = {a.name: torch.arange(a.size) % 2 == 1 for a in axes.axes if not a.pins}
    if not half:
        row.update(status="nothing to cut", reason=_most_common_pins(axes))
        return
    with _timed(clock, "plan"):
        plan = planner.make(completed(axes, half), ())
    with _timed(clock, "shrink"):
        small = topiarist.shrink(model, plan, inputs)
    num_before, num_after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    row.update(num_params=num_before, removed=1 - num_after / num_before)
    one = tree_map(lambda x: x[:1], inputs) if zoos()[zoo].first_is_batch else inputs
    with _timed(clock, "verify"):
        checked = topiarist.verify(model, small, plan, one)
    row.update(error=checked.error, num_inexact=len(checked.inexact), inexact=_operators(checked.inexact))
    with _timed(clock, "save and load"):
        row["reloaded"] = _reloads(small, inputs, zoo, name)
    row["control"] = _control_fails(model, axes, one)
    if row["control"] is False and one is not inputs:  # batch norms over 1 × 1 images take no statistics from one
        row["control"] = _control_fails(model, axes, inputs)
    good = checked.passed and row["reloaded"] and row["control"] is not False
    row["status"] = "passed" if good else "wrong"


def _described(axes: Axes) -> Row:
    return {
        "num_axes": len(axes.axes),
        "num_free": len(axes.free),
        "unknown": sorted(axes.unknown_operators),
        "training": None if axes.training_error is None else str(axes.training_error)[:200],
        "pinned": _most_common_pins(axes),
    }


def _most_common_pins(axes: Axes) -> str:
    """The commonest reasons of pinned axes, leaving out inputs, outputs and images."""
    pins = (pin for axis in axes.axes for pin in axis.pins[:1] if pin.kind not in FIXED)
    reasons = Counter(pin.removesuffix(f", at {pin.where}").removesuffix(f", in {pin.module}") for pin in pins)
    return "; ".join(f"{reason} ({num})" for reason, num in reasons.most_common(3))


def _operators(inexact: Any) -> list[str]:
    return sorted({reason.partition(" runs over")[0] for reason in inexact.values()})


def _reloads(small: nn.Module, inputs: Any, zoo: str, name: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        topiarist.save(small, folder)
        again = topiarist.load(folder, build=lambda: _rebuilt(zoo, name)).eval()
    found = []
    for model in (small.eval(), again):
        torch.manual_seed(0)  # for what the model itself draws at random
        with torch.no_grad():
            found.append(tensors_in(call(model, inputs)))
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def _rebuilt(zoo: str, name: str) -> nn.Module:
    return zoos()[zoo].build(name)[0]


def _control_fails(model: nn.Module, axes: Axes, inputs: Any) -> bool | None:
    """Whether a cut shifted by one index in one tensor is caught; None where no exact axis lives in two tensors.

    Half of the axis is cut: a single unit may be dead on these inputs, and nothing could see it.
    """
    for axis in axes.axes:
        tensors = list(dict.fromkeys(m.tensor for m in axis.members))
        if axis.pins or axis.inexact or axis.step or len(tensors) < 2 or axis.size < 3:
            continue
        alone = Planner(model, axes, Channel()).make({axis.name: torch.arange(axis.size) % 2 == 1}, ())
        weight = next((t for t in tensors if t in axes.weights()), None)
        if weight is None:
            continue
        shifted = tuple(Slice(s.dim, s.removed.roll(1)) for s in alone.slices[weight])
        wrong = Plan(alone.structure, alone.removed, {**alone.slices, weight: shifted}, alone.attributes)
        return not topiarist.verify(model, topiarist.shrink(model, wrong), wrong, inputs).passed
    return None


def _randomise_statistics(model: nn.Module) -> None:
    """Batch norms as after some training: fresh ones hide what goes wrong with them."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]


@contextmanager
def _timed(clock: dict[str, float], what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    clock[what] = round(time.perf_counter() - start, 3)


torch.set_num_threads(1)
declare_missing_operators()  # before what is loaded next imports torchvision

if __name__ == "__main__":
    sys.stdout.write(json.dumps(examine(*sys.argv[1:3])) + "\n")

"""A mixture that never chooses some of its experts: what is left when they go, on the model as it is.

Where an operator runs over the axis of the experts, those that go are given what does not count: −∞ in a softmax, a
maximum or a choice of the best, 0 in a sum. Zeroing their weights would not do: a router's output of 0 may be the best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from topiarist.graph.axis import Axis, AxisGraph
from topiarist.graph.copies import named_modules
from topiarist.graph.reasons import Reason
from topiarist.graph.rules import named
from topiarist.graph.sizes import source_line

Call = tuple[str, str, str]  # an operator, the source line that calls it and the module that runs
Fills = Mapping[
    Call, Sequence[tuple[int, Tensor]]
]  # by dimension of the first operand: bool (size,), what does not count
_BEST = named("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "topk", "argmax", "max", "amax",
              "logsumexp")  # fmt: skip
NEUTRAL: dict[Any, float] = {
    **dict.fromkeys(_BEST, -inf),
    **dict.fromkeys(named("argmin", "min", "amin"), inf),
    **dict.fromkeys(named("sum", "nansum"), 0.0),
}
_SAID = ("a softmax or running sum", "a top-k", *(f"{packet.__name__} " for packet in NEUTRAL))  # in reasons


def fills_of(
    runs: Mapping[Call, Sequence[tuple[Axis, ...]]], graph: AxisGraph, gone: Mapping[Axis, Tensor]
) -> dict[Call, list[tuple[int, Tensor]]]:
    """What does not count in which calls, given the axes of their first operands and the indices that go of each leaf;
    nothing of a call that runs over several."""
    found: dict[Call, list[tuple[int, Tensor]]] = {}
    for call, operands in runs.items():
        dims = {tuple((d, graph.find(a)) for d, a in enumerate(axes) if graph.find(a) in gone) for axes in operands}
        if len(dims) == 1 and (own := dims.pop()):
            found[call] = [(d, gone[leaf]) for d, leaf in own]
    return found


def is_known(reason: Reason, fills: Fills) -> bool:
    """Whether the operator that makes an axis inexact is one that ``fills`` are for."""
    places = ((where, module) for _, where, module in fills)
    return reason.startswith(_SAID) and (reason.where, reason.module) in places


@contextmanager
def never_chosen(model: nn.Module, fills: Fills) -> Iterator[None]:
    """Inside the ``with``, ``model`` runs as if it had only the experts that stay."""
    running: list[str] = []
    modules = named_modules(model)
    names = {id(module): name for name, module in modules}

    def enter(module: nn.Module, args: Any) -> None:
        running.append(names[id(module)])

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        running.pop()

    handles = [module.register_forward_pre_hook(enter) for _, module in modules]
    handles += [module.register_forward_hook(leave, always_call=True) for _, module in modules]
    try:
        with _Unchosen(running, fills):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Unchosen(TorchDispatchMode):
    def __init__(self, running: Sequence[str], fills: Fills) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running, self.fills = running, fills

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        neutral = NEUTRAL.get(func.overloadpacket)
        if neutral is not None and self.running:
            call = func.overloadpacket.__name__, source_line(), self.running[-1]
            over = _dims(func, args, kwargs) if call in self.fills else ()
            for dim, gone in self.fills.get(call, ()):
                if dim in over and args[0].shape[dim] == len(gone):
                    shape = [-1 if d == dim else 1 for d in range(args[0].dim())]
                    args = (args[0].masked_fill(gone.to(args[0].device).view(shape), neutral), *args[1:])
        return func(*args, **kwargs)


def _dims(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> set[int]:
    """The dimensions that an operator runs over."""
    rank = args[0].dim()
    names = [a.name for a in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    default = -1 if func.overloadpacket is torch.ops.aten.topk else None
    dims = given.get("dim", default)
    listed = [dims] if isinstance(dims, int) else dims or range(rank)
    return {d % rank for d in listed}

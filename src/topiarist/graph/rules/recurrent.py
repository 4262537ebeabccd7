"""Recurrent layers: one rule for all time steps, which torch spells out one by one where tensors have no values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from topiarist.graph.sizes import Term, plain

if TYPE_CHECKING:
    from topiarist.graph.axis import Axis
    from topiarist.graph.trace import Trace

_VF: Any = torch._VF
_NUM_GATES: dict[Any, int] = {_VF.lstm: 4, _VF.gru: 3, _VF.rnn_tanh: 1, _VF.rnn_relu: 1}


@dataclass(frozen=True)
class _Layers:
    """What a call of ``lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu`` is given.

    Per layer and direction ``weights`` hold w_ih ``(gates · hidden, in)``, w_hh ``(gates · hidden, out)``, their biases
    if there are any, and w_hr ``(out, hidden)`` where an LSTM projects what it returns.
    """

    num_gates: int
    data: Tensor  # (time, batch, in), (batch, time, in) or, packed, (steps of all examples, in)
    states: tuple[Tensor, ...]  # (layers · directions, batch, size)
    weights: tuple[tuple[Tensor, ...], ...]  # one entry a layer and direction
    num_directions: int
    time: int | None  # the dimension of the data, unless it is packed

    @classmethod
    def of(cls, function: Any, args: Sequence[Any]) -> _Layers:
        """Read the arguments of torch's function, which are positional."""
        is_packed = isinstance(args[3], (tuple, list))  # the second then says how many examples there are at each step
        states, weights, _, num_layers, _, _, is_bidirectional, *batch_first = args[2:] if is_packed else args[1:]
        num = plain(num_layers) * (2 if is_bidirectional else 1)
        each = len(weights) // num
        time = None if is_packed else int(batch_first[0])
        return cls(
            _NUM_GATES[function], args[0], tuple(states) if isinstance(states, (tuple, list)) else (states,),
            tuple(tuple(weights[i * each : (i + 1) * each]) for i in range(num)), 2 if is_bidirectional else 1, time,
        )  # fmt: skip

    def empty(self) -> tuple[Tensor, ...]:
        """Tensors of the shapes that the call returns: all steps, then the last of every layer and direction."""
        size = self.states[0].shape[-1] * self.num_directions
        return (self.data.new_empty((*self.data.shape[:-1], size)), *(s.new_empty(s.shape) for s in self.states))


def _called(function: Any, trace: Trace, *args: Any) -> tuple[Tensor, ...]:
    """Call a recurrent function, tie its axes, and return what it returns."""
    trace.pin_unsettled("its size is set outside of torch's functions")
    layers = _Layers.of(function, args)
    trace.skips_steps = True
    if _has_no_values(layers.data):
        out = layers.empty()
    else:
        with _disable_current_modes():
            out = function(*args)
    _tie(trace, layers, out)
    trace.settle()
    return out


def recurrent_functions() -> dict[Any, Callable[..., Any]]:
    """The recurrent functions, and what is called in their stead while a model is traced."""
    return {function: partial(_called, function) for function in _NUM_GATES}


def _has_no_values(tensor: Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor)


class WithoutSteps(TorchFunctionMode):
    """Inside the ``with``, recurrent functions return shapes alone where tensors have no values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _NUM_GATES and _has_no_values(args[0]):
            return _Layers.of(func, args).empty()
        return func(*args, **(kwargs or {}))


def _tie(trace: Trace, layers: _Layers, out: Sequence[Tensor]) -> None:
    *steps, entering = trace[layers.data].axes
    batch = trace[layers.states[0]].axes[1]
    if layers.time is not None:
        trace.unify(batch, steps[layers.time - 1], "a recurrent layer")
    trace.pin(steps[layers.time or 0], "a recurrent layer runs along it", "spatial")
    is_zero = trace[layers.data].zero[-1]
    for start in range(0, len(layers.weights), layers.num_directions):
        made = [
            _direction(trace, layers, weights, steps, entering, is_zero)
            for weights in layers.weights[start : start + layers.num_directions]
        ]
        entering, is_zero = trace.graph.sum(made), False
    trace.put(out[0], (*steps, entering), [False] * out[0].dim())
    for before, after in zip(layers.states, out[1:], strict=True):
        trace.pin(trace[before].axes[0], "it counts the layers of a recurrent net")
        trace.put(after, trace[before].axes, [False] * after.dim())


def _direction(
    trace: Trace, layers: _Layers, weights: Sequence[Tensor], steps: Sequence[Axis], entering: Axis, is_zero: bool
) -> Axis:
    """Tie one layer in one direction; the axis that it returns."""
    from_input, from_state, *others = weights
    projection = others.pop() if others and others[-1].dim() == 2 else None
    hidden = trace.graph.leaf(from_input.shape[0] // layers.num_gates)
    for tensor in (from_input, from_state, *others):
        gates = trace[tensor].axes[0]
        for gate in trace.graph.cut(gates, [hidden.size] * layers.num_gates, "the gates of a recurrent layer"):
            trace.unify(hidden, gate, "a recurrent layer")
        trace.tie(Term("//", gates, layers.num_gates), hidden)
    returned = hidden
    if projection is not None:
        returned = trace[projection].axes[0]
        trace.unify(trace[projection].axes[1], hidden, "a recurrent layer")
    for tensor, axis, zero in ((from_input, entering, is_zero), (from_state, returned, False)):
        trace.unify(axis, trace[tensor].axes[1], "a recurrent layer")
        if not (zero or trace[tensor].zero[1]):
            trace.inexact(axis, "a recurrent layer")
        trace.sums(tensor, 1)
        trace.cost(*steps, *trace[tensor].axes, source=trace[tensor].source, factor=(tensor, 1, 0))
    if projection is not None:
        trace.sums(projection, 1)
        trace.cost(*steps, *trace[projection].axes, source=trace[projection].source, factor=(projection, 1, 0))
    for state, axis in zip(layers.states, (returned, hidden), strict=False):
        trace.unify(trace[state].axes[2], axis, "a recurrent layer")
    return returned

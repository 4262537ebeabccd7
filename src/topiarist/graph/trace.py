"""Run a model once and infer its axes: a dispatch mode sees every ATen call, and one rule per operator family speaks.

The run is on fake tensors (shapes only), so its cost does not grow with width or FLOPs; where control flow depends on
data it is repeated on real ones. Evaluation and training mode are both traced into the same axes. The caller's model
is not touched: a structural copy that shares its parameters runs instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from topiarist.errors import InputError, TraceError
from topiarist.graph import attributes
from topiarist.graph.arguments import SIZE_ARGUMENTS
from topiarist.graph.axis import Axis, AxisGraph
from topiarist.graph.groups import Axes, TensorInfo
from topiarist.graph.rules import RULES
from topiarist.graph.sizes import Attribute, Constraint, Expression, Size, expression_of, source_line
from topiarist.inputs import call


@dataclass(frozen=True)
class Tracked:
    """What is known of a tensor: its axes; per dimension, whether zeroing an index upstream zeroes it here too; and
    the model tensor it is a reshaped view of, if any."""

    axes: tuple[Axis, ...]
    zero: tuple[bool, ...]
    source: str | None = None


@dataclass(frozen=True, eq=False)
class Cost:
    """Multiply–accumulates: the product of the sizes of ``axes``; ``tensor`` is the weight that takes part, if any."""

    axes: tuple[Axis, ...]
    tensor: str | None


class Trace:
    """What the rules speak to while a model runs."""

    def __init__(self) -> None:
        self.graph = AxisGraph()
        self.costs: list[Cost] = []
        self.constraints: list[Constraint] = []
        self.values: list[tuple[Expression, str]] = []
        self.unknown: dict[str, str] = {}  # operator without a rule → first source line
        self.outputs: dict[str, list[Axis]] = {}  # module → axes of what it returns
        self.used: set[str] = set()
        self.parameters: set[str] = set()
        self.counting = True
        self._known: dict[int, tuple[Tensor, Tracked]] = {}

    def __getitem__(self, tensor: Tensor) -> Tracked:
        """What is known of ``tensor``; one never seen before is a constant and pins what it meets."""
        entry = self._known.get(id(tensor))
        if entry is None:
            axes = self.pinned(tensor.shape, "it meets a constant tensor")
            self.put(tensor, axes)
            entry = self._known[id(tensor)]
        tracked = entry[1]
        if tracked.source is not None:
            self.used.add(tracked.source)
        return tracked

    def put(
        self, tensor: Tensor, axes: Sequence[Axis], zero: Sequence[bool] | None = None, source: str | None = None
    ) -> None:
        """Say what the axes of ``tensor`` are; ``zero`` defaults to True everywhere."""
        sizes = tuple(self.graph.find(axis).size for axis in axes)
        if sizes != tuple(tensor.shape):
            raise AssertionError(f"a rule gave axes of sizes {sizes} to a tensor of shape {tuple(tensor.shape)}")
        zeros = (True,) * len(sizes) if zero is None else tuple(zero)
        self._known[id(tensor)] = (tensor, Tracked(tuple(axes), zeros, source))

    def pinned(self, sizes: Sequence[int], reason: str) -> list[Axis]:
        """New axes that may not shrink."""
        axes = [self.graph.leaf(size) for size in sizes]
        for axis in axes:
            self.pin(axis, reason)
        return axes

    def pin(self, axis: Axis, reason: str) -> None:
        """Pin ``axis`` with a reason and the source line that causes it."""
        self.graph.pin(axis, f"{reason}, at {source_line()}")

    def inexact(self, axis: Axis, operator: str) -> None:
        """Note that ``operator`` runs over ``axis``, so that removing an index cannot equal zeroing it."""
        self.graph.mark_inexact(axis, f"{operator} runs over it, at {source_line()}")

    def unify(self, a: Axis, b: Axis, operator: str) -> Axis:
        """Tie two axes of equal size; axes of size 1 broadcast and tie nothing."""
        return self.graph.unify(a, b, f"{operator} at {source_line()}")

    def contract(self, a: tuple[Tensor, int], b: tuple[Tensor, int], operator: str) -> Axis:
        """Tie the contracted pair; exact where either side is zero at a zeroed index."""
        left, right = self[a[0]], self[b[0]]
        axis = self.unify(left.axes[a[1]], right.axes[b[1]], operator)
        if not (left.zero[a[1]] or right.zero[b[1]]):
            self.inexact(axis, operator)
        return axis

    def cost(self, *axes: Axis, source: str | None) -> None:
        """Count multiply–accumulates: the product of the sizes of ``axes``."""
        if self.counting:
            self.costs.append(Cost(axes, source))

    def sized(self, value: int, axis: Axis) -> None:
        """A call fixed the size of ``axis`` to ``value``: remember where the number came from."""
        if self.graph.find(axis).size == 1:
            return
        expression = expression_of(value)
        if isinstance(expression, int):
            self.pin(axis, f"the size {int(value)} is written in the code")
        else:
            self.tie(expression, axis)

    def tie(self, expression: Expression, axis: Axis) -> None:
        """Remember that ``expression`` must equal the size of ``axis``."""
        if self.graph.find(axis).size != 1:
            self.constraints.append(Constraint(expression, axis, source_line()))

    def shape(self, tensor: Tensor) -> torch.Size:
        """The shape of ``tensor`` as integers that remember their axes."""
        sizes = [Size(self.graph.find(axis).size, axis, self.on_value) for axis in self[tensor].axes]
        return torch.Size(sizes)

    def on_value(self, expression: Expression) -> None:
        """A size became a number of its own: what it belongs to cannot change without changing the function."""
        self.values.append((expression, source_line()))

    # ------------------------------------------------------------------ the operators' side

    def operator(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Let the rule of ``func`` speak, or pin everything where there is none."""
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not outputs:
            return
        found = RULES.get(func) or RULES.get(func.overloadpacket)
        if found is not None:
            found(self, out, *args, **kwargs)
            return
        name = str(func.overloadpacket)
        self.unknown.setdefault(name, source_line())
        for tensor in (t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)):
            for axis in self[tensor].axes:
                self.pin(axis, f"no rule for the operator {name}")
        for tensor in outputs:
            self.put(tensor, self.pinned(tensor.shape, f"no rule for the operator {name}"))


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.trace.operator(func, args, kwargs, out)
        return out


class _Functions(TorchFunctionMode):
    """Hands out shapes that remember their axes, and sees sizes arrive in calls."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == torch.Tensor.shape.__get__:  # type: ignore[attr-defined]
            return self.trace.shape(args[0])
        if func is torch.Tensor.size:
            shape, dim = self.trace.shape(args[0]), (*args[1:], *kwargs.values())
            return shape if not dim or dim[0] is None else shape[dim[0]]
        handler = SIZE_ARGUMENTS.get(func)
        if handler is None and isinstance(func, FunctionType) and func.__globals__["__name__"] in _IN_PYTHON:
            with self:  # its sizes arrive in the calls it makes itself
                return _without_dispatch(func)(*args, **kwargs)
        out = func(*args, **kwargs)
        if handler is not None:
            handler(self.trace, out, *args, **kwargs)
        return out


_IN_PYTHON = ("torch.nn.functional", "torch.functional")


@cache
def _without_dispatch(func: FunctionType) -> FunctionType:
    """The body of one of torch's Python functions, which would otherwise hand itself to the mode again."""
    checks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    scope = {**func.__globals__, **{name: lambda *_: False for name in checks}}
    body = FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


def trace(model: nn.Module, example_inputs: Any) -> Axes:
    """Infer the axes of ``model``: which tensor dimensions live and die together, and which may not shrink, and why.

    ``example_inputs`` is a tensor, a tuple of positional arguments or a dict of keyword arguments; sizes of its
    dimensions stay as they are. The model is left as it was.

    Raises:
        TraceError: the model does not run on ``example_inputs``, in evaluation or in training mode.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> trace(net, torch.zeros(1, 4)).free
        ['0.weight:0']
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"trace takes a torch.nn.Module, got {type(model).__name__}")
    state = Trace()
    clone = structural_copy(model)
    tensors = _register(state, clone)
    integers = attributes.integer_attributes(clone)
    tracked = {path: Size(value, Attribute(path), state.on_value) for path, value in integers.items()}
    errors: dict[str, Exception] = {}
    with attributes.replaced(clone, tracked):
        for mode in ("evaluation", "training"):
            clone.train(mode == "training")
            state.counting = mode == "evaluation"
            try:
                _run(state, clone, example_inputs)
            except Exception as error:  # whatever a model may raise; it is chained below
                errors[mode] = error
    if "evaluation" in errors:
        raise _trace_error(model, example_inputs, errors["evaluation"])
    return Axes(model, state, tensors, integers, errors.get("training"))


def structural_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose modules are its own and whose tensors are the model's.

    Raises:
        InputError: the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *module.__dict__.values()):
            if isinstance(value, Tensor):
                memo[id(value)] = value
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise InputError(
            f"the model cannot be copied ({error}); topiarist works on a copy, so copy.deepcopy(model) must work"
        ) from error


def model_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, str]]:
    """Every tensor a model holds: (dotted name, tensor, "parameter", "buffer" or "attribute"); tied ones twice."""
    yield from ((name, p, "parameter") for name, p in model.named_parameters(remove_duplicate=False))
    yield from ((name, b, "buffer") for name, b in model.named_buffers(remove_duplicate=False))
    for module_name, module in model.named_modules():
        for name, value in module.__dict__.items():
            if isinstance(value, Tensor):
                yield (f"{module_name}.{name}" if module_name else name), value, "attribute"


def _register(state: Trace, model: nn.Module) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    first: dict[int, str] = {}
    for name, tensor, kind in model_tensors(model):
        if id(tensor) in first:
            known = tensors[first[id(tensor)]]
            tensors[name] = TensorInfo(known.axes, kind, tensor.element_size(), tied_to=first[id(tensor)])
            continue
        first[id(tensor)] = name
        axes = tuple(state.graph.leaf(size) for size in tensor.shape)
        state.put(tensor, axes, source=name)
        if kind == "parameter":
            state.parameters.add(name)
        tensors[name] = TensorInfo(axes, kind, tensor.element_size())
    return tensors


def _run(state: Trace, model: nn.Module, example_inputs: Any) -> None:
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            inputs = tree_map(lambda x: fake.from_tensor(x) if isinstance(x, Tensor) else x, example_inputs)
            _forward(state, model, inputs)
    except Exception as on_fake:
        try:
            with torch.random.fork_rng(devices=[]), _buffers_restored(model):
                _forward(state, model, tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, example_inputs))
        except Exception as on_real:
            raise on_real from on_fake


def _forward(state: Trace, model: nn.Module, inputs: Any) -> None:
    for tensor in (t for t in tree_leaves(inputs) if isinstance(t, Tensor)):
        axes = [state.graph.leaf(size) for size in tensor.shape]
        for axis in axes:
            state.graph.pin(axis, "it is a dimension of the model's input")
        state.put(tensor, axes)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        for name, module in model.named_modules():
            handle = module.register_forward_hook(_recorder(state, name))
            stack.callback(handle.remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(_Operators(state))
        stack.enter_context(_Functions(state))
        out = call(model, inputs)
    for tensor in (t for t in tree_leaves(_plain(out)) if isinstance(t, Tensor)):
        for axis in state[tensor].axes:
            state.graph.pin(axis, "it is a dimension of the model's output")


def _recorder(state: Trace, name: str) -> Callable[[nn.Module, Any, Any], None]:
    def record(module: nn.Module, args: Any, out: Any) -> None:
        del module, args
        for tensor in (t for t in tree_leaves(_plain(out)) if isinstance(t, Tensor)):
            state.outputs.setdefault(name, []).extend(state[tensor].axes)

    return record


def _plain(out: Any) -> Any:
    """Outputs as containers that pytrees know: mapping- and dataclass-like results as dicts."""
    if isinstance(out, Mapping) and type(out) is not dict:
        return dict(out)
    return vars(out) if hasattr(out, "__dict__") and not isinstance(out, Tensor) else out


@contextmanager
def _buffers_restored(model: nn.Module) -> Iterator[None]:
    before = [(b, b.detach().clone()) for b in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _trace_error(model: nn.Module, example_inputs: Any, error: Exception) -> TraceError:
    shapes = tree_map(lambda x: tuple(x.shape) if isinstance(x, Tensor) else x, example_inputs)
    devices = sorted(
        {str(t.device) for t in [*tree_leaves(example_inputs), *model.parameters()] if isinstance(t, Tensor)}
    )
    reason = TraceError(
        f"{type(model).__name__} does not run on the example inputs (shapes {shapes}, devices {', '.join(devices)}): "
        f"{type(error).__name__}: {error}; check that model(example_inputs) works, with inputs on the model's device"
    )
    reason.__cause__ = error
    return reason

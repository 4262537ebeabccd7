"""Run a model once and infer its axes: a dispatch mode sees every ATen call, and one rule per operator family speaks.

The run is on meta tensors (shapes only), so its cost does not grow with width or FLOPs; where that fails it is repeated
on fake tensors, which know their devices, and at last on real ones. Evaluation and training mode are both traced into
the same axes, in one run where the mode makes no difference. The caller's model is not touched: a structural copy that
shares its parameters runs instead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules import module as torch_modules
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from topiarist.asked import require_module
from topiarist.errors import InputError, TraceError
from topiarist.graph import attributes
from topiarist.graph.arguments import SIZE_ARGUMENTS
from topiarist.graph.assumed import Assuming
from topiarist.graph.blueprint import Blueprint, read
from topiarist.graph.copies import UncopiedError, model_tensors, named_modules, structural_copy
from topiarist.graph.folding import fold
from topiarist.graph.groups import Axes, TensorInfo
from topiarist.graph.heads import with_free_heads
from topiarist.graph.modes import Modes
from topiarist.graph.readers import READERS, body_of
from topiarist.graph.rehearsal import Number, Stage, numbers_in, rehearsed
from topiarist.graph.rules.recurrent import WithoutSteps
from topiarist.graph.running import (
    CONSTANT,
    fails_on_any_values,
    plain_operators,
    quiet,
    set_mode,
    tensors_restored,
    twin,
    without_frames,
)
from topiarist.graph.sizes import (
    Attribute,
    Size,
)
from topiarist.graph.states import collector_paused, random_states_kept
from topiarist.graph.straight import straight_call
from topiarist.graph.trace import Trace
from topiarist.inputs import as_arguments, call, fresh
from topiarist.outputs import tensors_in


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here: torch need not wrap each call of the mode so that it is not."""
        return False

    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before, self.trace.is_inside = self.trace.is_inside, True
        try:
            found = self.trace.searches(func, args, kwargs)
            out = self.trace.kernels(func, args, kwargs) if found is None else found
            _account(self.trace, func, args, kwargs, out)
        finally:
            self.trace.is_inside = before
        return out


def _account(trace: Trace, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    if trace.counts and (values := numbers_in(func, args, kwargs)):
        trace.numbers.append(Number(func.name(), values))
    trace.operator(func, args, kwargs, out)


class _Functions(TorchFunctionMode):
    """Hands out shapes that remember their axes, and sees sizes arrive in calls."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self.inside: list[Any] = []  # functions whose bodies are running
        self.bodies: dict[Any, Callable[..., Any] | None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.trace.is_inside:  # scripted code hands its operators to the modes in turn
            return func(*args, **kwargs)
        self.trace.uses(args, kwargs)
        reader = READERS.get(func)
        if reader is not None:
            return reader(self.trace, *args, **kwargs)
        handler = SIZE_ARGUMENTS.get(func)
        if (called := straight_call(func, args, kwargs)) is not None:
            self.trace.pin_unsettled("its size is set outside of torch's functions")
            out = self._straight(*called)
            if out is not None:
                self.trace.function(func, handler, args, kwargs, out)
                return out
        body = self._body(func) if handler is None and func not in self.inside else None
        if body is not None:
            self.inside.append(func)
            try:
                with self:
                    return body(*args, **kwargs)
            finally:
                self.inside.pop()
        self.trace.pin_unsettled("its size is set outside of torch's functions")
        out = func(*args, **kwargs)
        self.trace.function(func, handler, args, kwargs, out)
        return out

    def _straight(self, operator: Any, args: tuple[Any, ...]) -> Tensor | None:
        """What a function returns that is no more than an operator, if that takes no kernel."""
        self.trace.is_inside = True
        try:
            with torch._C._DisableTorchDispatch():
                out = self.trace.kernels.first(operator, args)
            if out is not None:
                _account(self.trace, operator, args, {}, out)
        finally:
            self.trace.is_inside = False
        return out

    def _body(self, func: Any) -> Callable[..., Any] | None:
        if func not in self.bodies:
            self.bodies[func] = body_of(func)
        return self.bodies[func]


def trace(model: nn.Module, example_inputs: Any, uniform: str | None = None) -> Axes:
    """Infer the axes of ``model``: which tensor dimensions live and die together, and which may not shrink, and why.

    ``example_inputs`` is a tensor, a tuple of positional arguments or a dict of keyword arguments; sizes of its
    dimensions stay as they are. The model is left as it was.

    ``uniform="config"`` names the attribute with the config that the model is built from: sizes stay such that a config
    describes them, see `topiarist.graph.blueprint`.

    Raises:
        InputError: the model cannot be copied, is not complete, or not what its class makes of the config.
        TraceError: the model does not run on ``example_inputs`` in evaluation mode.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> trace(net, torch.zeros(1, 4)).free
        ['0.weight:0']
    """
    require_module(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            f"{type(model).__name__} is code that torch.jit has fixed; pass the module that it was made of"
        )
    as_arguments(example_inputs)  # refuses what is no arguments
    held = list(model_tensors(model))
    lazy = [name for name, tensor, _ in held if torch.nn.parameter.is_lazy(tensor)]
    if lazy:
        raise InputError(f"{lazy[0]} is lazy, it has no shape yet: call model(example_inputs) once, then trace")
    computed = [name for name, tensor, _ in held if not tensor.is_leaf]
    if computed:  # as the older weight norm and masks of torch.nn.utils leave it
        raise InputError(
            f"{computed[0]} holds the graph that computed it, which copy.deepcopy(model) refuses; topiarist works on a "
            "copy: run the model once inside torch.no_grad(), after which it holds a plain tensor"
        )
    with collector_paused():
        return _traced(model, example_inputs, held, None if uniform is None else read(model, uniform))


def _traced(
    model: nn.Module, example_inputs: Any, held: Sequence[tuple[str, Tensor, str]], blueprint: Blueprint | None
) -> Axes:
    state = Trace()
    tensors = _register(state, held)
    integers = attributes.integer_attributes(model)
    state.integers.update(integers)
    state.picks.register(named_modules(model))
    errors: dict[str, Exception] = {}
    with random_states_kept(model):
        for mode in ("evaluation", "training"):
            state.counting = mode == "evaluation"
            try:
                ran = _run(state, model, mode == "training", example_inputs)
            except UncopiedError:
                raise
            except Exception as error:  # whatever a model may raise; it is chained below
                errors[mode] = without_frames(error)
            if mode == "evaluation":
                used, without_values = set(state.used), None if errors else ran
                if state.modes.are_one:
                    break
    state.decide()
    state.close()
    if "evaluation" in errors:
        raise _trace_error(model, example_inputs, errors["evaluation"])
    for name in sorted(state.used - used) if "training" in errors else ():  # who else reads them is not known
        for axis in tensors[name].axes:
            state.graph.pin(
                axis, f"{name} is used in training mode, which does not run on the example inputs", "training"
            )

    def collected() -> Axes:
        return Axes(model, state, tensors, integers, errors.get("training"), blueprint)

    if without_values is None:
        return collected()
    searches = state.picks.hits if state.picks.axes else None
    steps = partial(_performing, state.skips_steps, searches)
    stage = Stage(model, example_inputs, state.kernels if without_values is _on_meta else None, steps)
    excused: Collection[int] = ()
    if blueprint is None and not errors and state.values["evaluation"]:
        excused = fold(state, collected, stage)
    return rehearsed(collected, state.numbers, stage, excused)


@contextmanager
def _performing(skips_steps: bool, hits: Mapping[str, int] | None) -> Iterator[None]:
    """What a model runs inside of that has run inside of a trace."""
    with WithoutSteps() if skips_steps else nullcontext(), nullcontext() if hits is None else Assuming(hits):
        yield


def _register(state: Trace, held: Sequence[tuple[str, Tensor, str]]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    first: dict[int, str] = {}
    for name, tensor, kind in held:
        if id(tensor) in first:
            known = tensors[first[id(tensor)]]
            tensors[name] = TensorInfo(known.axes, kind, tensor.element_size(), tied_to=first[id(tensor)])
            continue
        first[id(tensor)] = name
        state.own[id(tensor)] = tensor
        state.strides[name] = tensor.stride() if tensor.layout is torch.strided else ()
        axes = state.sources[name] = tuple(state.graph.leaf(size) for size in tensor.shape)
        state.put(tensor, axes, [kind == "parameter"] * len(axes), source=name)  # masks zero parameters only
        if kind == "parameter":
            state.parameters.add(name)
        tensors[name] = TensorInfo(axes, kind, tensor.element_size())
    state.settle()
    return tensors


def _run(state: Trace, model: nn.Module, training: bool, example_inputs: Any) -> Callable[..., None] | None:
    """Run a fresh copy on meta tensors, which is fastest; where that fails, on fake ones, and at last on real ones.

    Returns what succeeded: `_on_meta`, `_on_fake`, or None for real tensors.
    """
    for attempt in (_on_meta, _on_fake):
        if _succeeds(attempt, state, model, training, example_inputs):
            return attempt
    with tensors_restored(model):
        _forward(state, structural_copy(model), training, fresh(example_inputs))
    state.forget()
    return None


def _succeeds(attempt: Callable[..., None], state: Trace, model: nn.Module, *args: Any) -> bool:
    """Whether a model runs on tensors without values; what it costs and computes with counts only if it does."""
    costs, numbers, values = len(state.costs), len(state.numbers), {key: len(v) for key, v in state.values.items()}
    succeeds, final = True, None
    try:
        attempt(state, model, *args)
    except UncopiedError:
        raise
    except Exception as error:  # whatever a model may raise
        del state.costs[costs:], state.numbers[numbers:]
        for key, num in values.items():
            del state.values[key][num:]
        succeeds = False
        if fails_on_any_values(error):
            final = without_frames(error)
    state.forget()
    if final is not None:
        raise final
    return succeeds


def _on_meta(state: Trace, model: nn.Module, training: bool, example_inputs: Any) -> None:
    """Nothing but shapes: the copy's tensors are twins of the model's on the meta device."""
    devices = {t.device for t in state.own.values()}
    if devices and not {t.device for t in tensors_in(example_inputs)} <= devices:
        raise ValueError("inputs on a device that holds nothing of the model: without devices it would not show")
    with torch.inference_mode(False):
        twins = {key: twin(tensor, tuple(tensor.shape)) for key, tensor in state.own.items()}
        inputs = tree_map(lambda x: torch.empty_like(x, device="meta") if isinstance(x, Tensor) else x, example_inputs)
    for key, stand_in in twins.items():
        state.alias(stand_in, state.own[key])
    state.is_elsewhere = any(device.type != "meta" for device in devices)
    try:
        _forward(state, structural_copy(model, twins), training, inputs)
    finally:
        state.is_elsewhere = False


def _on_fake(state: Trace, model: nn.Module, training: bool, example_inputs: Any) -> None:
    """Shapes and devices, and the values of the smallest tensors."""
    with quiet(), tensors_restored(model, CONSTANT), FakeTensorMode(allow_non_fake_inputs=True) as fake:
        inputs = tree_map(lambda x: fake.from_tensor(x) if isinstance(x, Tensor) else x, example_inputs)
        _forward(state, structural_copy(model), training, inputs)


def _forward(state: Trace, clone: nn.Module, training: bool, inputs: Any) -> None:
    for tensor in (t for t in tree_leaves(inputs) if isinstance(t, Tensor)):
        axes = [state.graph.leaf(size) for size in tensor.shape]
        for axis in axes:
            state.graph.pin(axis, "it is a dimension of the model's input", "input")
        state.put(tensor, axes)
    state.settle()
    state.running.clear()
    clone = with_free_heads(clone)
    set_mode(clone, training)
    with ExitStack() as stack:
        if not training:
            state.modes = Modes(state.running)
            stack.enter_context(state.modes.watched(clone))
        stack.enter_context(_followed(state, clone))
        stack.enter_context(attributes.replaced(clone, lambda path, value: Size(value, Attribute(path), state)))
        stack.enter_context(plain_operators())
        stack.enter_context(_Operators(state))
        stack.enter_context(_Functions(state))
        out = call(clone, inputs)
    state.pin_unsettled("its size is set outside of torch's functions")
    returned = tensors_in(out)
    state.uses(returned, {})
    for tensor in returned:
        for axis in state[tensor].axes:
            state.graph.pin(axis, "it is a dimension of the model's output", "output")


@contextmanager
def _followed(state: Trace, model: nn.Module) -> Iterator[None]:
    """Inside the ``with``, the trace knows which of the modules run, and what they return."""
    names = {id(module): name for name, module in named_modules(model)}

    def enter(module: nn.Module, args: Any) -> None:
        name = names.get(id(module))
        if name is not None:
            state.order[name] = None
            state.running.append(name)
            state.picks.enter(name, args)

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        name = names.get(id(module))
        if name is None:
            return
        state.returned(name, module, args, kwargs, out)
        while state.running and state.running.pop() != name:
            pass  # a module inside that raised, and whose error the model caught
        returned = tensors_in(out)
        for tensor in returned:
            state.outputs.setdefault(name, []).extend(state.axes_of(tensor))
        state.picks.leave(name, returned)
        if state.modes.are_to_be_compared(name):
            before = state.known_of(out)
            state.modes.compare(
                name,
                state.kind_of(module, args, kwargs),
                lambda: state.alike(before, state.known_of(module(*args, **kwargs))),
                state.num_known,
            )

    handles = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        torch_modules._global_forward_hooks_with_kwargs.pop(handles[1].id, None)  # torch 2.13 leaves this one behind


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

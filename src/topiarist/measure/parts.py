"""The parts of a model that do the work: calls of modules in which no other module is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map, tree_map_only

from topiarist.graph.copies import model_tensors, structural_copy
from topiarist.inputs import fresh
from topiarist.measure.quiet import run, undisturbed


@dataclass(frozen=True, eq=False)
class Part:
    """One call of a module: what it is called with, perhaps without data, and what tells its cost.

    Parts of equal ``key`` are modules of one class and configuration called with tensors of the same shapes.
    """

    key: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def with_data(self, device: torch.device) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        """The module and its arguments in tensors that hold numbers, whichever."""
        filled = {id(t): _filled(t, device) for _, t, _ in model_tensors(self.module)}
        args, kwargs = tree_map_only(Tensor, lambda t: _filled(t, device), (self.args, self.kwargs))
        return structural_copy(self.module, filled), args, kwargs


@contextmanager
def without_data(model: nn.Module, inputs: Any) -> Iterator[tuple[nn.Module, Any]]:
    """A copy of the model and of the inputs that knows shapes alone; inside, operators compute nothing else."""
    with FakeTensorMode() as mode:
        faked = {id(tensor): mode.from_tensor(tensor) for _, tensor, _ in model_tensors(model)}
        yield structural_copy(model, faked), tree_map_only(Tensor, mode.from_tensor, inputs)


def parts_of(model: nn.Module, inputs: Any) -> dict[str, Part]:
    """The parts of one call in evaluation mode, by module and number of its call (``"layer1.0.conv1#0"``).

    Nothing is computed where the model runs on shapes alone.

    Raises:
        TraceError: the model does not run on the inputs.

    Example:
        >>> act = nn.ReLU()
        >>> list(parts_of(nn.Sequential(nn.Linear(2, 3), act, nn.Linear(3, 2), act), torch.zeros(1, 2)))
        ['0#0', '1#0', '2#0', '1#1']
    """
    try:
        with without_data(model, inputs) as (copied, faked):
            return _recorded(copied, faked)
    except Exception:  # whatever needs values
        return _recorded(model, fresh(inputs))


def _recorded(model: nn.Module, inputs: Any) -> dict[str, Part]:
    found: dict[str, Part] = {}
    calls: dict[str, int] = {}
    open_calls: list[list[Any]] = []  # of the modules that run: whether another was called inside, and the arguments

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for outer in open_calls[-1:]:
            outer[0] = False
        open_calls.append([True, *tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, (args, kwargs))])

    def after(name: str, module: nn.Module) -> None:
        is_leaf, args, kwargs = open_calls.pop()
        number = calls.get(name, 0)
        calls[name] = number + 1
        if is_leaf:
            found[f"{name}#{number}"] = Part(_key(module, args, kwargs), module, args, kwargs)

    with undisturbed(model), ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            hook = module.register_forward_hook(lambda m, _args, _out, name=name: after(name, m), always_call=True)
            stack.callback(hook.remove)
        run(model, inputs)
    return found


def _key(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    held = [_shape(tensor) for _, tensor, _ in model_tensors(module)]
    given = tree_map(_shape, (args, dict(kwargs)))
    return " ".join(f"{type(module).__module__}.{module!r} holding {held} called with {given}".split())


def _shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _filled(tensor: Tensor, device: torch.device) -> Tensor:
    if not isinstance(tensor, FakeTensor):
        return tensor
    make = torch.ones if tensor.is_floating_point() else torch.zeros  # zeros are valid indices
    data = make(tensor.shape, dtype=tensor.dtype, device=device)
    return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data

"""Masks that hold through any optimizer: what is masked is set back to zero right after each step.

Nothing is added to the forward pass and no key of the state dict changes, so compiled and distributed training are
unaffected (only whole layers that go have a hook, which hands their input on). One process-wide hook, present only
while something is masked, follows every optimizer's step and zeroes the masked entries of weights and of the
optimizer's state (momentum, Adam's moments), which would otherwise revive them. The removed values are kept aside, so
that a mask comes off without a trace.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from topiarist.errors import InputError, nearest
from topiarist.graph.bypass import identity_hook
from topiarist.plan import Plan


@dataclass(frozen=True, eq=False)
class _Masked:
    original: Tensor
    owner: weakref.ref[nn.Module]
    leaf: str
    removed: Tensor  # bool, the parameter's shape
    values: Tensor  # what the removed entries held, in row-major order

    @property
    def parameter(self) -> Tensor:
        """The parameter as it is now: `load_state_dict(assign=True)`, for one, puts another in its place."""
        owner = self.owner()
        current = None if owner is None else owner._parameters.get(self.leaf)
        return self.original if current is None or current.shape != self.removed.shape else current


@dataclass(frozen=True, eq=False)
class _Attachment:
    plan: Plan
    tensors: dict[str, _Masked]
    hooks: tuple[RemovableHandle, ...]  # that hand on the inputs of layers that are removed
    end: weakref.finalize[[], nn.Module]  # the hook goes with the last masked model


_attached: weakref.WeakKeyDictionary[nn.Module, _Attachment] = weakref.WeakKeyDictionary()
_handles: list[RemovableHandle] = []


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """Zero in place what ``plan`` removes, and keep it zero through every optimizer step, until `unmask`.

    A model that is masked already takes the new mask instead; entries that come back hold their values of before.

    Returns:
        The same model.

    Raises:
        InputError: the plan does not fit the model; nothing is changed.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = mask(layer, Plan("weight", {"weight": torch.tensor([True, False])}))
        >>> float(layer.weight[0, 0].detach())
        0.0
        >>> _ = unmask(layer)
    """
    masks = plan.masks(model)
    _check_modules(model, plan)
    if model in _attached:
        unmask(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tensors: dict[str, _Masked] = {}
    with torch.no_grad():
        for name, removed in masks.items():
            parameter = parameters[name]
            path, _, leaf = name.rpartition(".")
            owner = weakref.ref(model.get_submodule(path))
            tensors[name] = _Masked(parameter, owner, leaf, removed, parameter[removed].clone())
        for entry in tensors.values():
            entry.parameter.masked_fill_(entry.removed, 0)
    hooks = tuple(
        model.get_submodule(name).register_forward_hook(identity_hook(form), with_kwargs=True)
        for name, form in plan.bypassed.items()
    )
    _attached[model] = _Attachment(plan, tensors, hooks, weakref.finalize(model, _drop_hook_if_idle))
    if not _handles:
        _handles.append(register_optimizer_step_post_hook(_after_step))
    return model


def _check_modules(model: nn.Module, plan: Plan) -> None:
    modules = dict(model.named_modules())
    for name in plan.bypassed:
        if not name or name not in modules:
            raise InputError(f"the plan removes {name!r}, which the model does not have ({nearest(name, modules)})")


def unmask(model: nn.Module, *, restore: bool = True) -> nn.Module:
    """Take the mask off, without a trace: removed entries hold again what they held before `mask`.

    With ``restore=False`` they stay zero and are free to move. A model without a mask is left as it is.

    Returns:
        The same model.
    """
    attachment = _attached.pop(model, None)
    if attachment is not None:
        attachment.end.detach()
        for hook in attachment.hooks:
            hook.remove()
    if attachment is not None and restore:
        with torch.no_grad():
            for entry in attachment.tensors.values():
                parameter = entry.parameter
                parameter[_on(entry.removed, parameter)] = entry.values.to(parameter)
    _drop_hook_if_idle()
    return model


@contextmanager
def masked(model: nn.Module, plan: Plan) -> Iterator[nn.Module]:
    """Inside the ``with``, ``model`` is masked by ``plan``; afterwards it is bit for bit as it was."""
    mask(model, plan)
    try:
        yield model
    finally:
        unmask(model)


def active_plan(model: nn.Module) -> Plan | None:
    """The plan that masks ``model`` now, if one does."""
    attachment = _attached.get(model)
    return None if attachment is None else attachment.plan


def reapply(model: nn.Module) -> None:
    """Zero again what is masked, after weights were overwritten from elsewhere; no-op where nothing is masked."""
    attachment = _attached.get(model)
    if attachment is not None:
        with torch.no_grad():
            for entry in attachment.tensors.values():
                parameter = entry.parameter
                parameter.masked_fill_(_on(entry.removed, parameter), 0)


@torch.no_grad()
def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for attachment in list(_attached.values()):
        for entry in attachment.tensors.values():
            parameter = entry.parameter
            if id(parameter) not in stepped:
                continue
            removed = _on(entry.removed, parameter)
            parameter.masked_fill_(removed, 0)
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == removed.shape:
                    value.masked_fill_(removed, 0)
    _drop_hook_if_idle()


def _on(removed: Tensor, parameter: Tensor) -> Tensor:
    return removed if removed.device == parameter.device else removed.to(parameter.device)


def _drop_hook_if_idle() -> None:
    if not any(True for _ in _attached):  # models that are gone do not count
        while _handles:
            _handles.pop().remove()

"""Masks that hold through any optimizer: what is masked is set back to zero right after each step.

Nothing is added to the forward pass and no key of the state dict changes, so compiled and distributed training are
unaffected (only whole layers that go have a hook, which hands their input on). One process-wide hook, present only
while something is masked, follows every optimizer's step and zeroes the masked entries of weights and of the
optimizer's state (momentum, Adam's moments), which would otherwise revive them. The removed values are kept aside, so
that a mask comes off without a trace. Weights of lower rank are projected again after each step instead.
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

from topiarist.asked import require, require_module
from topiarist.errors import InputError, nearest
from topiarist.graph.bypass import identity_hook
from topiarist.graph.factored import projected
from topiarist.plan import Plan


@dataclass(frozen=True, eq=False)
class _Held:
    original: Tensor
    owner: weakref.ref[nn.Module]
    leaf: str

    @classmethod
    def place(cls, model: nn.Module, name: str) -> tuple[Tensor, weakref.ref[nn.Module], str]:
        """The parameter, the module that holds it, and the name it has there."""
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        return getattr(owner, leaf), weakref.ref(owner), leaf

    @property
    def parameter(self) -> Tensor:
        """The parameter as it is now: `load_state_dict(assign=True)`, for one, puts another in its place."""
        owner = self.owner()
        current = None if owner is None else owner._parameters.get(self.leaf)
        return self.original if current is None or current.shape != self.original.shape else current

    def hold(self) -> None:
        """Take from the parameter what is removed."""
        raise NotImplementedError

    def hold_state(self, value: Tensor) -> None:
        """Take the same from what an optimizer remembers, of the shape of the parameter."""

    def restore(self) -> None:
        """Put back what was there before."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class _Masked(_Held):
    removed: Tensor  # bool, the parameter's shape
    values: Tensor  # what the removed entries held, in row-major order

    def hold(self) -> None:
        parameter = self.parameter
        parameter.masked_fill_(_on(self.removed, parameter), 0)

    def hold_state(self, value: Tensor) -> None:
        value.masked_fill_(_on(self.removed, value), 0)

    def restore(self) -> None:
        parameter = self.parameter
        parameter[_on(self.removed, parameter)] = self.values.to(parameter)


@dataclass(frozen=True, eq=False)
class _Projected(_Held):
    basis: Tensor  # (outputs, rank), with orthonormal columns
    before: Tensor
    after: Tensor

    def hold(self) -> None:
        parameter = self.parameter
        parameter.copy_(projected(parameter, self.basis))

    def restore(self) -> None:
        parameter = self.parameter
        before, after = self.before.to(parameter), self.after.to(parameter)
        parameter.copy_(before if torch.equal(parameter, after) else parameter + (before - after))


@dataclass(frozen=True, eq=False)
class _Attachment:
    plan: Plan
    tensors: dict[str, _Held]
    hooks: tuple[RemovableHandle, ...]  # that hand on the inputs of layers that are removed
    end: weakref.finalize[[], nn.Module]  # the hook goes with the last masked model


_attached: weakref.WeakKeyDictionary[nn.Module, _Attachment] = weakref.WeakKeyDictionary()
_handles: list[RemovableHandle] = []


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """Zero in place what ``plan`` removes, and keep it zero through every optimizer step, until `unmask`.

    A model that is masked already takes the new mask instead; entries that come back hold their values of before. A
    copy of the model, by `copy.deepcopy` or pickle, has the zeros and no mask: mask it too, or use `topiarist.save`.

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
    require_module(model)
    require(plan, Plan, "a plan is a Plan", "what topiarist.plan returns, or Plan.from_json(text)")
    masks = plan.masks(model)
    _check_fit(model, plan)
    if model in _attached:
        unmask(model)
    tensors: dict[str, _Held] = {}
    with torch.no_grad():
        for name, removed in masks.items():
            place = _Held.place(model, name)
            tensors[name] = _Masked(*place, removed, place[0][removed].clone())
        for name, basis in plan.bases.items():
            place = _Held.place(model, name)
            tensors[name] = _Projected(*place, basis, place[0].clone(), projected(place[0], basis))
        for entry in tensors.values():
            entry.hold()
    hooks = tuple(
        model.get_submodule(name).register_forward_hook(identity_hook(form), with_kwargs=True)
        for name, form in plan.bypassed.items()
    )
    _attached[model] = _Attachment(plan, tensors, hooks, weakref.finalize(model, _drop_hook_if_idle))
    if not _handles:
        _handles.append(register_optimizer_step_post_hook(_after_step))
    return model


def _check_fit(model: nn.Module, plan: Plan) -> None:
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    for name, basis in plan.bases.items():
        if name not in parameters or len(parameters[name]) != len(basis):
            raise InputError(
                f"the plan projects {name!r} of {len(basis)} outputs, which the model does not have "
                f"({nearest(name, parameters)})"
            )
    for name in plan.bypassed:
        if not name or name not in modules:
            raise InputError(f"the plan removes {name!r}, which the model does not have ({nearest(name, modules)})")


def unmask(model: nn.Module, *, restore: bool = True) -> nn.Module:
    """Take the mask off, without a trace: removed entries hold again what they held before `mask`.

    With ``restore=False`` they stay zero and are free to move. A model without a mask is left as it is.

    Returns:
        The same model.
    """
    require_module(model)
    attachment = _attached.pop(model, None)
    if attachment is not None:
        attachment.end.detach()
        for hook in attachment.hooks:
            hook.remove()
    if attachment is not None and restore:
        with torch.no_grad():
            for entry in attachment.tensors.values():
                entry.restore()
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
                entry.hold()


@torch.no_grad()
def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for attachment in list(_attached.values()):
        for entry in attachment.tensors.values():
            parameter = entry.parameter
            if id(parameter) not in stepped:
                continue
            entry.hold()
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    entry.hold_state(value)
    _drop_hook_if_idle()


def _on(removed: Tensor, parameter: Tensor) -> Tensor:
    return removed if removed.device == parameter.device else removed.to(parameter.device)


def _drop_hook_if_idle() -> None:
    if not any(True for _ in _attached):  # models that are gone do not count
        while _handles:
            _handles.pop().remove()

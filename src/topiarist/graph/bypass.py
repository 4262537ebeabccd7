"""Modules that hand their first input on: what is left of a layer that is removed, and which layers can be.

A *form* says what a module returned, so that its stand-in returns the same: ``"x"`` is a tensor, ``"(x,-)"`` a tuple of
a tensor and a None, ``"[x]"`` a list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from topiarist.errors import InputError, nearest

_FORM = re.compile(r"x|\(x(,-)*\)|\[x(,-)*\]")
_PLAIN = (bool, int, float, str, type(None))


class Bypass(nn.Module):
    """A module that returns its first input, in the form in which the module it stands for returned its output.

    Raises:
        InputError: the form is not known.

    Example:
        >>> import torch
        >>> Bypass("(x,-)")(torch.ones(1), mask=None)
        (tensor([1.]), None)
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = check_form(form)

    @classmethod
    def of(cls, module: nn.Module, form: str) -> Bypass:
        """A stand-in for ``module`` with its public numbers and words, which other code may ask it for."""
        made = cls(form).train(module.training)
        plain = {n: v for n, v in vars(module).items() if isinstance(v, _PLAIN) and not n.startswith("_")}
        made.__dict__.update({**plain, "form": made.form})
        return made

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return hand_on(self.form, args, kwargs)

    def extra_repr(self) -> str:
        return self.form


def check_form(form: str) -> str:
    """The form, if it is one.

    Raises:
        InputError: it is none.
    """
    if not _FORM.fullmatch(form):
        raise InputError(f"a bypass returns a form such as 'x' or '(x,-)', got {form!r}")
    return form


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first input of a call: the first argument, or where all have names, the first of those that is a tensor."""
    if args:
        return args[0] if isinstance(args[0], Tensor) else None
    return next((value for value in kwargs.values() if isinstance(value, Tensor)), None)


def hand_on(form: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a bypass returns."""
    x = first_tensor(args, kwargs)
    if form == "x":
        return x
    items = [x, *([None] * form.count("-"))]
    return tuple(items) if form[0] == "(" else items


def identity(form: str) -> Callable[..., Any]:
    """A forward that hands its first input on."""
    check_form(form)
    return lambda *args, **kwargs: hand_on(form, args, kwargs)


def identity_hook(form: str) -> Callable[..., Any]:
    """A forward hook (``with_kwargs=True``) that puts the first input in the place of what a module returned."""

    check_form(form)

    def replace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        del module, out
        return hand_on(form, args, kwargs)

    return replace


def form_of(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any, shape: Callable[[Tensor], Any]) -> str:
    """The form of ``out`` where its only tensor has the shape and dtype of the first input; else ""."""
    x = first_tensor(args, kwargs)
    items = list(out) if type(out) in (tuple, list) else [out]
    if x is None or not items or not isinstance(items[0], Tensor) or any(item is not None for item in items[1:]):
        return ""
    if shape(items[0]) != shape(x) or items[0].dtype != x.dtype:
        return ""
    inside = ",".join(["x", *("-" for _ in items[1:])])
    if isinstance(out, Tensor):
        return "x"
    return f"({inside})" if isinstance(out, tuple) else f"[{inside}]"


def replace_module(model: nn.Module, name: str, make: Callable[[nn.Module], nn.Module]) -> None:
    """Put what ``make`` returns of a module in its place, wherever ``model`` holds it.

    Raises:
        InputError: there is no such module.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if not name or name not in modules:
        raise InputError(f"{type(model).__name__} has no module {name!r} to replace ({nearest(name, modules)})")
    old = modules[name]
    new = make(old)
    for module in list(model.modules()):
        for key, child in module._modules.items():
            if child is old:
                module._modules[key] = new

"""Modules that hand their inputs on: what is left of a layer that is removed.

In the place of what it returned, `topiarist.graph.forms` says what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from topiarist.errors import InputError, nearest
from topiarist.graph.forms import check_form, hand_on

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

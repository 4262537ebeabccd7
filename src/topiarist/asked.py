"""Arguments of the kind that is asked for, where a user hands over another: a result for its model, a float for a
budget."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from torch import nn

from topiarist.errors import InputError


def require(value: object, kind: Any, what: str, attempt: str) -> None:
    """Refuse an argument of another kind than ``what`` says; where it holds what was meant, name that.

    Raises:
        InputError: ``value`` is no instance of ``kind``.

    Example:
        >>> require(0.5, str, "a name is text", "name='head'")
        Traceback (most recent call last):
        ...
        topiarist.errors.InputError: a name is text, got float 0.5; try name='head'
    """
    if isinstance(value, kind):
        return
    held = next((name for name in ("model", "plan") if isinstance(getattr(value, name, None), kind)), None)
    found = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
    if held is not None:
        attempt = f"its .{held}"
    elif value is None or isinstance(value, (str, numbers.Real, dict)):
        found = f"{found} {value!r:.60}" if value is not None else "None"
    raise InputError(f"{what}, got {found}; try {attempt}")


def require_module(model: object) -> None:
    """Refuse what is no model.

    Raises:
        InputError: it is none.

    Example:
        >>> require_module(nn.Linear(2, 1))
    """
    require(model, nn.Module, "a model is a torch.nn.Module", "the module itself, before its inputs")


def require_function(value: object, what: str, attempt: str) -> None:
    """Refuse what cannot be called, and a class, which is not what its instances are.

    Raises:
        InputError: it is one of both.

    Example:
        >>> require_function(nn.functional.mse_loss, "a loss is a function", "loss=torch.nn.functional.cross_entropy")
    """
    if isinstance(value, type):
        raise InputError(f"{what}, got the class {value.__name__}; try {value.__name__}()")
    if not callable(value):
        require(value, Callable, what, attempt)


def require_loss(loss: object) -> None:
    """Refuse what is no loss.

    Raises:
        InputError: it cannot be called.

    Example:
        >>> require_loss(nn.functional.mse_loss)
    """
    require_function(loss, "a loss is a function of outputs and targets", "loss=torch.nn.functional.cross_entropy")


def whole_number(value: object, what: str, *, least: int, attempt: str) -> None:
    """Refuse what is no whole number from ``least`` up.

    Raises:
        InputError: it is none.

    Example:
        >>> whole_number(3, "steps", least=1, attempt="steps=5")
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        raise InputError(f"{what} must be a whole number, {least} or more, got {value!r:.60}; try {attempt}")


def named_numbers(found: object) -> dict[str, float]:
    """What a function of the user's for evaluation returned, as plain numbers.

    Raises:
        InputError: it is no mapping of names to numbers.

    Example:
        >>> named_numbers({"accuracy": 0.5})
        {'accuracy': 0.5}
    """
    require(found, Mapping, "evaluate returns a dict of numbers by name", "return {'accuracy': …}")
    plain = {name: v.item() if getattr(v, "ndim", None) == 0 else v for name, v in dict(cast(Any, found)).items()}
    for name, value in plain.items():
        require(name, str, "evaluate names each number that it returns", "return {'accuracy': …}")
        require(value, numbers.Real, f"what evaluate returns as {name!r} is a number", f"float({name})")
    return plain


def patterns(keep: str | Iterable[str]) -> tuple[str, ...]:
    """The patterns of ``keep``, of which one may stand alone.

    Raises:
        InputError: they are not text.

    Example:
        >>> patterns("head.*"), patterns(["stem", "head.*"])
        (('head.*',), ('stem', 'head.*'))
    """
    if isinstance(keep, str):
        return (keep,)
    said = tuple(keep) if isinstance(keep, Iterable) else (keep,)
    for each in said:
        if not isinstance(each, str):
            raise InputError(
                f"keep is patterns over the names of modules, as in keep=['head', 'blocks.0.*'], "
                f"got {type(each).__name__} {each!r:.60}"
            )
    return said

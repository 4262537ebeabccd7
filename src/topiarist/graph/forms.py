"""What a removed layer hands on in the place of what it returned, as a string.

A *form* has the shape of what the layer returned: ``"x"`` is a tensor, ``"(x,-)"`` a tuple, ``"[x]"`` a list and
``"{hidden:x}"`` a dict. Its leaves say what comes there: ``x`` the first input, ``-`` a None, ``@2:bias`` the input at
position 2 or of that name, ``@:bias`` one that has a name only, and ``@0.mask`` what the first holds under a key or at
a place.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from topiarist.errors import InputError

_WORD = re.compile(r"(?:@(?:\d+(?::\w+)?|:\w+)(?:\.\w+)*)|\w+|[-()\[\]{},:]")
_ADDRESS = re.compile(r"@(\d*)(?::(\w+))?((?:\.\w+)*)")
_BRACKETS = {"(": ")", "[": "]", "{": "}"}

Make = Callable[[Sequence[Any], Mapping[str, Any]], Any]  # of the inputs of a call


def check_form(form: str) -> str:
    """The form, if it is one.

    Raises:
        InputError: it is none.
    """
    _parsed(form)
    return form


def hand_on(form: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a layer of this form hands on of its inputs.

    Raises:
        InputError: the form is none.

    Example:
        >>> import torch
        >>> hand_on("(x,-,@1:mask)", (torch.ones(1),), {"mask": torch.zeros(1)})
        (tensor([1.]), None, tensor([0.]))
    """
    return _parsed(form)(args, kwargs)


def first_tensor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first input of a call: the first argument, or where all have names, the first of those that is a tensor."""
    if args:
        return args[0] if isinstance(args[0], Tensor) else None
    return next((value for value in kwargs.values() if isinstance(value, Tensor)), None)


def addresses(args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Every input of a call, and what tuples, lists and dicts among them hold, with the leaf that stands for it;
    ``names`` are those of the parameters that have a position."""
    places = {name: i for i, name in enumerate(names)}
    for i, value in enumerate(args):
        yield from _below(f"@{i}:{names[i]}" if i < len(names) else f"@{i}", value)
    for name, value in kwargs.items():
        yield from _below(f"@{places.get(name, '')}:{name}", value)


def leaves(out: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """What a tuple, list or dict holds at last, with where: ``("1.0", …)`` for ``out[1][0]``."""
    if type(out) not in (tuple, list, dict):
        yield place, out
        return
    for key, value in out.items() if isinstance(out, dict) else enumerate(out):
        yield from leaves(value, f"{place}.{key}" if place else str(key))


def written(out: Any, leaf: Mapping[str, str], place: str = "") -> str:
    """The form of what has the shape of ``out``, with these leaves by their places; empty where none can say it."""
    if type(out) not in (tuple, list, dict):
        return leaf[place]
    opening = "{" if isinstance(out, dict) else "(" if isinstance(out, tuple) else "["
    items = []
    for key, value in out.items() if isinstance(out, dict) else enumerate(out):
        inner = written(value, leaf, f"{place}.{key}" if place else str(key))
        if not inner or not re.fullmatch(r"\w+", str(key)) or (isinstance(out, dict) and not isinstance(key, str)):
            return ""
        items.append(f"{key}:{inner}" if isinstance(out, dict) else inner)
    return opening + ",".join(items) + _BRACKETS[opening]


def _below(address: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield address, value
    if type(value) in (tuple, list, dict):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if re.fullmatch(r"\w+", str(key)):
                yield from _below(f"{address}.{key}", item)


# ------------------------------------------------------------------------------------------------------------- reading


@functools.cache
def _parsed(form: str) -> Make:
    words = _WORD.findall(form)
    try:
        if "".join(words) != form:
            raise ValueError(form)
        make = _read(words)
        if words:
            raise ValueError(form)
    except (ValueError, IndexError):
        raise InputError(f"a bypass returns a form such as 'x', '(x,-)' or '(x,@1:mask)', got {form!r}") from None
    return make


def _read(words: list[str]) -> Make:
    """What the first of these words says, which are taken."""
    word = words.pop(0)
    if word in _BRACKETS:
        return _container(words, word)
    if word == "x":
        return first_tensor
    if word == "-":
        return lambda args, kwargs: None
    address = _ADDRESS.fullmatch(word)
    if address is None:
        raise ValueError(word)
    place, name, inside = address.groups()
    return functools.partial(_at, int(place) if place else None, name, [key for key in inside.split(".") if key])


def _container(words: list[str], opening: str) -> Make:
    made: list[tuple[str, Make]] = []
    while words[0] != _BRACKETS[opening]:
        if made and words.pop(0) != ",":
            raise ValueError("a comma is missing")
        key = words.pop(0) if opening == "{" else ""
        if opening == "{" and (not re.fullmatch(r"\w+", key) or words.pop(0) != ":"):
            raise ValueError("a key is missing")
        made.append((key, _read(words)))
    words.pop(0)
    if opening == "{":
        return lambda args, kwargs: {key: make(args, kwargs) for key, make in made}
    kind = tuple if opening == "(" else list
    return lambda args, kwargs: kind([make(args, kwargs) for _, make in made])


def _at(place: int | None, name: str | None, inside: list[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The input at a position or of a name, and what it holds inside; None where the call has none there."""
    value = args[place] if place is not None and place < len(args) else kwargs.get(name) if name else None
    for key in inside:
        if value is None:
            return None
        value = value[key] if isinstance(value, Mapping) else value[int(key)]
    return value

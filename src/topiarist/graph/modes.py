"""Evaluation and training mode: who asks which of them it is, and whether the answer makes a difference.

Both are to be traced, and most of a model is the same in both. While it runs in evaluation mode, its modules do not
hold ``training`` themselves: whoever reads it is seen. A module that does is run once more where it stands, in training
mode, on the same inputs. If it returns the like, axis by axis, then what comes after cannot tell the modes apart, and
the model as a whole need not run again. What torch's own batch norm and dropout do with the answer is known; and where
that run taught nothing of any axis, it would not for a module that is the same in all but the values of its tensors.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

from torch import nn

from topiarist.graph.copies import named_modules
from topiarist.graph.sizes import plain

_INTERNAL = frozenset(nn.Module().__dict__)
_INDIFFERENT = frozenset(f.__code__ for f in (nn.modules.batchnorm._BatchNorm.forward, nn.Dropout.forward))


class Modes:
    """Who asks for the mode while one copy of a model runs.

    ``are_one`` says whether all that was asked made no difference so far: then one run speaks for both modes.
    """

    def __init__(self, running: list[str]) -> None:
        self.are_one = False
        self.is_training = False
        self._running = running
        self._asked: set[str] = set()  # the modules running that have asked
        self._repeated: list[str] = []
        self._taught_nothing: set[Hashable] = set()

    @contextmanager
    def watched(self, model: nn.Module) -> Iterator[None]:
        """Inside the ``with``, the modules of ``model``, which is in evaluation mode, ask here."""
        modules = [module for _, module in named_modules(model)]
        if not all(map(_is_plain, modules)):
            yield
            return
        self.are_one = True
        for module in modules:
            del module.__dict__["training"]
        with _asking({id(module): self for module in modules}):
            yield

    def asked_by(self, code: CodeType) -> bool:
        """Whether it is training mode; ``code`` wants to know."""
        if code not in _INDIFFERENT and not self.is_training:
            self._asked.add(self._running[-1] if self._running else "")
        return self.is_training

    def are_to_be_compared(self, name: str) -> bool:
        """Whether a module that has just run has to run in training mode as well."""
        if name not in self._asked or self.is_training:
            return False
        self._asked.remove(name)
        if not name or any(other.startswith(f"{name}.") for other in self._repeated):
            self.are_one = False  # all of it at once, in a copy of its own, is no more work
        return self.are_one

    def compare(
        self, name: str, kind: Hashable, is_the_like: Callable[[], bool], num_known: Callable[[], Hashable]
    ) -> None:
        """Run a module in training mode and say whether it returned the like.

        Of one ``kind`` (None: it has none) are modules that do the same; ``num_known`` tells whether a run has taught
        anything.
        """
        self._repeated.append(name)
        if kind in self._taught_nothing:
            return
        before = num_known()
        self.is_training = True
        try:
            self.are_one = is_the_like()
        except Exception:  # whatever a model may raise: it will again, when all of it runs in training mode
            self.are_one = False
        finally:
            self.is_training = False
        if self.are_one and kind is not None and num_known() == before:
            self._taught_nothing.add(kind)


def kind_of(module: nn.Module) -> Hashable:
    """What two modules of which one does what the other does have in common: all but the values of their tensors.

    None where a module holds what cannot be compared.
    """
    try:
        return _kind_of(module)
    except TypeError:
        return None


def _kind_of(module: nn.Module) -> Hashable:
    found: list[Any] = [type(module)]
    for name, value in module.__dict__.items():
        if name not in _INTERNAL:
            found.append((name, _compared(value)))
        elif not value:  # no hooks, as mostly
            continue
        elif name in ("_parameters", "_buffers"):
            found.extend([(key, t if t is None else (t.shape, t.dtype)) for key, t in value.items()])
        elif name == "_modules":
            found.extend([(key, part if part is None else _kind_of(part)) for key, part in value.items()])
        else:
            found.append((name, _compared(value)))
    return tuple(found)


def _compared(value: Any) -> Hashable:
    """What is compared of an attribute; a size is compared as the number it is."""
    kind = type(value)
    if kind is bool or kind is float:
        return kind, value
    if isinstance(value, int):
        return False, plain(value)
    if isinstance(value, (float, str, type(None), FunctionType, BuiltinFunctionType)):
        return value
    if isinstance(value, tuple):
        return tuple(map(_compared, value))
    if value or not isinstance(value, (list, dict, set)):
        raise TypeError(f"a {type(value).__name__} cannot be compared")
    return ()


def _is_plain(module: nn.Module) -> bool:
    """Whether the mode is what ``training`` says, and nothing but that."""
    own = getattr(module.train, "__func__", None) is nn.Module.train
    return own and "training" in module.__dict__ and not hasattr(type(module), "training")


# ------------------------------------------------------------------------------------------------- the reading of it

_WATCHED: dict[int, Modes] = {}
_LOCK = threading.Lock()


class _Training:
    """``nn.Module.training`` for instances that do not hold it themselves."""

    def __get__(self, module: nn.Module | None, owner: type | None = None) -> bool:
        modes = _WATCHED.get(id(module))
        if modes is None:
            raise AttributeError("training")
        return modes.asked_by(sys._getframe(1).f_code)


@contextmanager
def _asking(whom: dict[int, Modes]) -> Iterator[None]:
    with _LOCK:
        if not _WATCHED:
            nn.Module.training = _Training()  # type: ignore[assignment]
        _WATCHED.update(whom)
    try:
        yield
    finally:
        with _LOCK:
            for key in whom:
                del _WATCHED[key]
            if not _WATCHED:
                del nn.Module.training

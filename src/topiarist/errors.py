"""What can go wrong, as types: every message says what was asked, what was found and what to try."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TopiaristError(Exception):
    """The base of every error that topiarist raises on purpose."""


class InputError(TopiaristError, ValueError):
    """An argument that cannot be used: out of range, not finite, matching nothing, of the wrong shape."""


class TraceError(TopiaristError, RuntimeError):
    """The model could not be run on the example inputs."""


class BudgetError(TopiaristError, ValueError):
    """The budget cannot be reached; the message names what limits it."""


class ShrinkError(TopiaristError, RuntimeError):
    """The model could not be made physically smaller as planned; the model itself is untouched."""


class TrainingError(TopiaristError, RuntimeError):
    """Training cannot go on, for example because the loss is no longer finite."""


class FormatError(TopiaristError, ValueError):
    """A file that is not topiarist's, is damaged, or does not fit the model it is loaded into."""


def nearest(name: str, names: Iterable[str], *, n: int = 3) -> str:
    """The names closest to ``name``, for a message: ``"nearest: a, b"``, or all of a few when none is close.

    Example:
        >>> nearest("fc1.wieght", ["fc1.weight", "conv.weight"], n=1)
        'nearest: fc1.weight'
    """
    names = [each for each in names if each]  # the model itself has the name ""
    close = difflib.get_close_matches(name, names, n=n, cutoff=0.4)
    if close:
        return "nearest: " + ", ".join(close)
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"available: {shown}" if names else "there are none"

"""What one unit is: a weight, a channel, a head."""

from __future__ import annotations

from collections.abc import Callable

from topiarist.errors import InputError, nearest
from topiarist.structure.base import Structure
from topiarist.structure.channel import Channel
from topiarist.structure.head import Head
from topiarist.structure.weight import Weight

__all__ = ["STRUCTURES", "Channel", "Head", "Structure", "Weight", "resolve"]

STRUCTURES: dict[str, Callable[[], Structure]] = {"weight": Weight, "channel": Channel, "head": Head}


def resolve(structure: str | Structure) -> Structure:
    """The structure a word stands for; an object is passed through.

    Raises:
        InputError: the word is not known.

    Example:
        >>> resolve("channel")
        Channel()
    """
    if not isinstance(structure, str):
        return structure
    if structure not in STRUCTURES:
        raise InputError(f"unknown structure {structure!r} ({nearest(structure, STRUCTURES)})")
    return STRUCTURES[structure]()

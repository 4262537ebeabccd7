"""What one unit is: a weight, a channel, a head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from topiarist.errors import InputError, nearest
from topiarist.structure.base import Structure
from topiarist.structure.channel import Channel
from topiarist.structure.head import Head
from topiarist.structure.weight import Weight

__all__ = ["STRUCTURES", "Channel", "Head", "Structure", "Weight", "resolve"]

STRUCTURES: dict[str, Callable[[], Structure]] = {"weight": Weight, "channel": Channel, "head": Head}


def resolve(structure: str | Structure, round_to: int | None = None) -> Structure:
    """The structure a word stands for, rounding to ``round_to`` if it is given; an object is passed through.

    Raises:
        InputError: the word is not known, or rounding is asked of a structure that does not round.

    Example:
        >>> resolve("channel", round_to=8)
        Channel(round_to=8)
    """
    if isinstance(structure, str):
        if structure not in STRUCTURES:
            raise InputError(f"unknown structure {structure!r} ({nearest(structure, STRUCTURES)})")
        structure = STRUCTURES[structure]()
    if round_to is None:
        return structure
    if not isinstance(structure, Channel):
        raise InputError(f"round_to is for structure 'channel', {structure} does not round")
    return replace(structure, round_to=round_to)

"""The words that recipes and the command line use for structures, and the sizes that some of them carry."""

from __future__ import annotations

import re
from collections.abc import Callable

from topiarist.errors import InputError, nearest
from topiarist.structure.base import Structure
from topiarist.structure.block import Block
from topiarist.structure.channel import Channel
from topiarist.structure.expert import Expert
from topiarist.structure.head import Head
from topiarist.structure.intra_kernel import IntraKernel
from topiarist.structure.kernel import Kernel, Vector
from topiarist.structure.layer import Layer
from topiarist.structure.nm import NM
from topiarist.structure.pattern import Pattern
from topiarist.structure.rank import Rank
from topiarist.structure.strided import Strided
from topiarist.structure.weight import Weight
from topiarist.structure.width import Width

STRUCTURES: dict[str, Callable[[], Structure]] = {
    "weight": Weight,
    "2:4": lambda: NM(2, 4),
    "block": Block,
    "kernel": Kernel,
    "vector": Vector,
    "pattern": Pattern,
    "strided": Strided,
    "intra-kernel": IntraKernel,
    "channel": Channel,
    "head": Head,
    "width": Width,
    "inner": lambda: Width(stream=False),
    "expert": Expert,
    "layer": Layer,
    "rank": Rank,
}
_SIZED: dict[str, Callable[..., Structure]] = {
    r"(\d+):(\d+)": NM,
    r"block:(\d+)x(\d+)": Block,
    r"strided:(\d+)": Strided,
    r"intra-kernel:(\d+)x(\d+)": IntraKernel,
}


def named(word: str) -> Structure:
    """The structure that a word means: a name, ``"n:m"``, ``"block:RxC"``, ``"strided:S"`` or ``"intra-kernel:ExS"``.

    Raises:
        InputError: no structure is called so, or its sizes make no sense.

    Example:
        >>> named("4:8"), named("block:16x1")
        (NM(n=4, m=8), Block(rows=16, cols=1))
    """
    if word in STRUCTURES:
        return STRUCTURES[word]()
    for pattern, make in _SIZED.items():
        if found := re.fullmatch(pattern, word):
            return make(*map(int, found.groups()))
    words = [*STRUCTURES, "4:8", "block:4x4", "strided:2", "intra-kernel:4x8"]
    raise InputError(f"unknown structure {word!r} ({nearest(word, words)})")


def word_of(structure: Structure) -> str:
    """What a plan calls a structure: its word, or its class in lower case."""
    return str(getattr(structure, "word", type(structure).__name__.lower()))

"""What one unit is: a weight, n of m, a block, a kernel, a channel, a head."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import nn

from topiarist.errors import InputError
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
from topiarist.structure.permutation import Permuted, permute
from topiarist.structure.rank import Rank
from topiarist.structure.rounding import multiple_for
from topiarist.structure.strided import Strided
from topiarist.structure.weight import Weight
from topiarist.structure.width import Width
from topiarist.structure.words import STRUCTURES, named

__all__ = [
    "NM",
    "STRUCTURES",
    "Block",
    "Channel",
    "Expert",
    "Head",
    "IntraKernel",
    "Kernel",
    "Layer",
    "Pattern",
    "Permuted",
    "Rank",
    "Strided",
    "Structure",
    "Vector",
    "Weight",
    "Width",
    "permute",
    "resolve",
]


def resolve(
    structure: str | Structure, round_to: int | Literal["auto"] | None = None, model: nn.Module | None = None
) -> Structure:
    """The structure a word stands for, rounding to ``round_to`` if it is given; an object is passed through.

    ``round_to="auto"`` is the multiple that the device of ``model`` computes in; see `topiarist.structure.rounding`.

    Raises:
        InputError: the word is not known, or rounding is asked of a structure that does not round, or for a device
            of which nothing is known.

    Example:
        >>> resolve("channel", round_to=8)
        Channel(round_to=8)
    """
    if isinstance(structure, str):
        structure = named(structure)
    if isinstance(structure, type) or not hasattr(structure, "units"):
        raise InputError(f"a structure is a word of {[*STRUCTURES]} or an object such as Channel(), got {structure!r}")
    if round_to is None:
        return structure
    if not isinstance(structure, Channel):
        raise InputError(f"round_to is for structure 'channel', {structure} does not round")
    if round_to == "auto":
        if model is None:
            raise InputError("round_to='auto' goes by the device of the model: pass the model, or a number")
        round_to = multiple_for(model)
    return replace(structure, round_to=round_to)

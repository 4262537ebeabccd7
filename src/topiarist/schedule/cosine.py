"""Cosine: slow, fast, slow."""

from __future__ import annotations

import math

from topiarist.schedule.progress import check


def cosine(progress: float, final: float) -> float:
    """Slow at both ends: s(t) = s_f · ½(1 − cos πt), the annealing of Loshchilov & Hutter 2017 turned round.

    Raises:
        InputError: ``progress`` or ``final`` lies outside [0, 1].

    Example:
        >>> [round(cosine(step / 4, 0.8), 4) for step in range(5)]
        [0.0, 0.1172, 0.4, 0.6828, 0.8]
    """
    check(progress, final)
    return final * (0.5 * (1 - math.cos(math.pi * progress)))

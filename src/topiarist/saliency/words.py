"""The words that recipes and the command line use for criteria."""

from __future__ import annotations

from collections.abc import Callable

from topiarist.errors import InputError, nearest
from topiarist.saliency.activation import Activation
from topiarist.saliency.apoz import APoZ
from topiarist.saliency.base import Saliency
from topiarist.saliency.correlated import Correlated
from topiarist.saliency.cosine import Cosine
from topiarist.saliency.fpgm import GeometricMedian
from topiarist.saliency.gradient import Gradient
from topiarist.saliency.magnitude import Magnitude
from topiarist.saliency.random import Random
from topiarist.saliency.similar import Similar

_WORDS: dict[str, Callable[[], Saliency]] = {
    "l1": lambda: Magnitude(p=1),
    "l2": lambda: Magnitude(p=2),
    "gradient": Gradient,
    "random": Random,
    "activation": Activation,
    "activation-mean": lambda: Activation("mean"),
    "activation-variance": lambda: Activation("variance"),
    "apoz": APoZ,
    "correlation": Correlated,
    "cosine": Cosine,
    "fpgm": GeometricMedian,
    "similar": Similar,
}


def resolve(saliency: str | Saliency) -> Saliency:
    """The criterion that a word or a callable means; a user's own function is taken as it is.

    Raises:
        InputError: the word is not known, or the object cannot be called.

    Example:
        >>> resolve("l2")
        Magnitude(p=2)
    """
    if isinstance(saliency, str):
        if saliency not in _WORDS:
            raise InputError(f"no saliency is called {saliency!r} ({nearest(saliency, _WORDS)})")
        return _WORDS[saliency]()
    if isinstance(saliency, type) or not callable(saliency):
        raise InputError(f"a saliency is a word of {[*_WORDS]} or a function of slices, got {saliency!r}")
    return saliency

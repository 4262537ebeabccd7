"""The words that recipes and the command line use for criteria."""

from __future__ import annotations

import math
from collections.abc import Callable

from topiarist.errors import InputError, nearest
from topiarist.saliency.activation import Activation
from topiarist.saliency.apoz import APoZ
from topiarist.saliency.base import Saliency
from topiarist.saliency.bn_scale import Scale
from topiarist.saliency.correlated import Correlated
from topiarist.saliency.cosine import Cosine
from topiarist.saliency.filter_norm import FilterNorm
from topiarist.saliency.fisher import Fisher
from topiarist.saliency.flap import Flap
from topiarist.saliency.fpgm import GeometricMedian
from topiarist.saliency.gradient import Gradient
from topiarist.saliency.grasp import GraSP
from topiarist.saliency.group_norm import GroupNorm
from topiarist.saliency.hrank import HRank
from topiarist.saliency.influence import BlockInfluence
from topiarist.saliency.lasso import Lasso
from topiarist.saliency.leave_out import LeaveOut
from topiarist.saliency.magnitude import Magnitude
from topiarist.saliency.obc import OBC
from topiarist.saliency.obd import OBD
from topiarist.saliency.obs import OBS
from topiarist.saliency.random import Random
from topiarist.saliency.similar import Similar
from topiarist.saliency.sparsegpt import SparseGPT
from topiarist.saliency.synflow import SynFlow
from topiarist.saliency.taylor import Taylor, TaylorWeight
from topiarist.saliency.taylor_2016 import Taylor2016
from topiarist.saliency.thinet import ThiNet
from topiarist.saliency.wanda import Wanda

_WORDS: dict[str, Callable[[], Saliency]] = {
    "l1": lambda: Magnitude(p=1),
    "l2": lambda: Magnitude(p=2),
    "linf": lambda: Magnitude(p=math.inf),
    "filter-l1": lambda: FilterNorm(p=1),
    "filter-l2": lambda: FilterNorm(p=2),
    "group-l2": GroupNorm,
    "gradient": Gradient,
    "snip": Gradient,
    "grasp": GraSP,
    "synflow": SynFlow,
    "taylor": Taylor,
    "taylor-example": lambda: Taylor(per="example"),
    "taylor-change": lambda: Taylor(per="change"),
    "taylor-2016": Taylor2016,
    "taylor-weight": TaylorWeight,
    "fisher": Fisher,
    "fisher-batch": lambda: Fisher(per="batch"),
    "obd": OBD,
    "obs": OBS,
    "bn-scale": Scale,
    "leave-out": LeaveOut,
    "random": Random,
    "activation": Activation,
    "activation-mean": lambda: Activation("mean"),
    "activation-variance": lambda: Activation("variance"),
    "apoz": APoZ,
    "correlation": Correlated,
    "block-influence": BlockInfluence,
    "cosine": Cosine,
    "flap": Flap,
    "fpgm": GeometricMedian,
    "hrank": HRank,
    "lasso": Lasso,
    "obc": OBC,
    "similar": Similar,
    "sparsegpt": SparseGPT,
    "thinet": ThiNet,
    "wanda": Wanda,
}

WORDS = tuple(_WORDS)


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
            raise InputError(f"no saliency is called {saliency!r} ({nearest(saliency, WORDS)})")
        return _WORDS[saliency]()
    if isinstance(saliency, type) or not callable(saliency):
        raise InputError(f"a saliency is a word of {[*WORDS]} or a function of slices, got {saliency!r}")
    return saliency

"""How much is removed at which step: functions from progress (0 to 1) and the final fraction to the fraction now."""

from topiarist.schedule.base import Schedule, may_fall, tried
from topiarist.schedule.constant_fraction import ConstantFraction
from topiarist.schedule.cosine import cosine
from topiarist.schedule.dense_sparse_dense import DenseSparseDense
from topiarist.schedule.one_cycle import OneCycle
from topiarist.schedule.per_layer import PerLayer
from topiarist.schedule.polynomial import Polynomial, cubic
from topiarist.schedule.progress import exponential, linear, one_shot
from topiarist.schedule.window import Window
from topiarist.schedule.words import WORDS, resolve

__all__ = [
    "WORDS",
    "ConstantFraction",
    "DenseSparseDense",
    "OneCycle",
    "PerLayer",
    "Polynomial",
    "Schedule",
    "Window",
    "cosine",
    "cubic",
    "exponential",
    "linear",
    "may_fall",
    "one_shot",
    "resolve",
    "tried",
]

"""The score of a unit: one formula and its paper per file. Low scores go first."""

from topiarist.saliency.base import Compensating, Saliency, Slices, needs, score
from topiarist.saliency.finite import check_finite
from topiarist.saliency.gradient import Gradient
from topiarist.saliency.magnitude import Magnitude
from topiarist.saliency.random import Random
from topiarist.saliency.words import resolve

__all__ = [
    "Compensating",
    "Gradient",
    "Magnitude",
    "Random",
    "Saliency",
    "Slices",
    "check_finite",
    "needs",
    "resolve",
    "score",
]

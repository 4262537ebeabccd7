"""The score of a unit: one formula and its paper per file. Low scores go first."""

from topiarist.saliency.activation import Activation
from topiarist.saliency.apoz import APoZ
from topiarist.saliency.base import Compensating, Saliency, Slices, needs, score
from topiarist.saliency.correlated import Correlated
from topiarist.saliency.cosine import Cosine
from topiarist.saliency.finite import check_finite
from topiarist.saliency.fpgm import GeometricMedian
from topiarist.saliency.gradient import Gradient
from topiarist.saliency.magnitude import Magnitude
from topiarist.saliency.random import Random
from topiarist.saliency.similar import Similar
from topiarist.saliency.words import resolve

__all__ = [
    "APoZ",
    "Activation",
    "Compensating",
    "Correlated",
    "Cosine",
    "GeometricMedian",
    "Gradient",
    "Magnitude",
    "Random",
    "Saliency",
    "Similar",
    "Slices",
    "check_finite",
    "needs",
    "resolve",
    "score",
]

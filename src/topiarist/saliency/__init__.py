"""The score of a unit: one formula and its paper per file. Low scores go first."""

from topiarist.saliency.activation import Activation
from topiarist.saliency.apoz import APoZ
from topiarist.saliency.base import Compensating, Saliency, Slices, needs, score
from topiarist.saliency.correlated import Correlated
from topiarist.saliency.cosine import Cosine
from topiarist.saliency.finite import check_finite
from topiarist.saliency.flap import Flap
from topiarist.saliency.fpgm import GeometricMedian
from topiarist.saliency.gradient import Gradient
from topiarist.saliency.hrank import HRank
from topiarist.saliency.influence import BlockInfluence
from topiarist.saliency.lasso import Lasso
from topiarist.saliency.magnitude import Magnitude
from topiarist.saliency.obc import OBC
from topiarist.saliency.random import Random
from topiarist.saliency.similar import Similar
from topiarist.saliency.sparsegpt import SparseGPT
from topiarist.saliency.thinet import ThiNet
from topiarist.saliency.wanda import Wanda
from topiarist.saliency.words import resolve

__all__ = [
    "OBC",
    "APoZ",
    "Activation",
    "BlockInfluence",
    "Compensating",
    "Correlated",
    "Cosine",
    "Flap",
    "GeometricMedian",
    "Gradient",
    "HRank",
    "Lasso",
    "Magnitude",
    "Random",
    "Saliency",
    "Similar",
    "Slices",
    "SparseGPT",
    "ThiNet",
    "Wanda",
    "check_finite",
    "needs",
    "resolve",
    "score",
]

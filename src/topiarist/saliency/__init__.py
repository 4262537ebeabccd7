"""The score of a unit: one formula and its paper per file. Low scores go first."""

from topiarist.saliency.activation import Activation
from topiarist.saliency.apoz import APoZ
from topiarist.saliency.base import Compensating, Saliency, Slices, needs, score, told
from topiarist.saliency.bn_scale import Scale
from topiarist.saliency.correlated import Correlated
from topiarist.saliency.cosine import Cosine
from topiarist.saliency.filter_norm import FilterNorm
from topiarist.saliency.finite import check_finite
from topiarist.saliency.fisher import Fisher
from topiarist.saliency.flap import Flap
from topiarist.saliency.fpgm import GeometricMedian
from topiarist.saliency.gate import Gate
from topiarist.saliency.gradient import Gradient
from topiarist.saliency.grasp import GraSP
from topiarist.saliency.group_norm import GroupNorm
from topiarist.saliency.hrank import HRank
from topiarist.saliency.influence import BlockInfluence
from topiarist.saliency.lasso import Lasso
from topiarist.saliency.leave_out import LeaveOut
from topiarist.saliency.magnitude import Magnitude
from topiarist.saliency.movement import Movement
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
from topiarist.saliency.words import resolve

__all__ = [
    "OBC",
    "OBD",
    "OBS",
    "APoZ",
    "Activation",
    "BlockInfluence",
    "Compensating",
    "Correlated",
    "Cosine",
    "FilterNorm",
    "Fisher",
    "Flap",
    "Gate",
    "GeometricMedian",
    "GraSP",
    "Gradient",
    "GroupNorm",
    "HRank",
    "Lasso",
    "LeaveOut",
    "Magnitude",
    "Movement",
    "Random",
    "Saliency",
    "Scale",
    "Similar",
    "Slices",
    "SparseGPT",
    "SynFlow",
    "Taylor",
    "Taylor2016",
    "TaylorWeight",
    "ThiNet",
    "Wanda",
    "check_finite",
    "needs",
    "resolve",
    "score",
    "told",
]

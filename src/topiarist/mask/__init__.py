"""Pruning while training: masks held at zero, masks that move, gates that learn, and pressure towards zero."""

from topiarist.mask.adaptive import SelfAdaptive
from topiarist.mask.attach import active_plan, mask, reapply, unmask
from topiarist.mask.dense import PrunableDense
from topiarist.mask.factors import Factors
from topiarist.mask.gates import Gates
from topiarist.mask.lagrangian import AugmentedLagrangian
from topiarist.mask.penalties import GroupLasso, GrowingL2, ImportanceL2, ScaleL1
from topiarist.mask.regrow import Regrower
from topiarist.mask.straight_through import StraightThrough
from topiarist.mask.units import units_in
from topiarist.mask.widths import Depths, Widths

__all__ = [
    "AugmentedLagrangian",
    "Depths",
    "Factors",
    "Gates",
    "GroupLasso",
    "GrowingL2",
    "ImportanceL2",
    "PrunableDense",
    "Regrower",
    "ScaleL1",
    "SelfAdaptive",
    "StraightThrough",
    "Widths",
    "active_plan",
    "mask",
    "reapply",
    "units_in",
    "unmask",
]

"""Pruning while training: masks held at zero, masks that move, gates that learn, and pressure towards zero."""

from topiarist.mask.attach import active_plan, mask, reapply, unmask
from topiarist.mask.dense import PrunableDense
from topiarist.mask.regrow import Regrower

__all__ = ["PrunableDense", "Regrower", "active_plan", "mask", "reapply", "unmask"]

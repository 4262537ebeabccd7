"""Reversible pruning, for training: masks held at zero, or a layer that multiplies by its mask."""

from topiarist.mask.attach import active_plan, mask, reapply, unmask
from topiarist.mask.dense import PrunableDense

__all__ = ["PrunableDense", "active_plan", "mask", "reapply", "unmask"]

"""Published systems, each a short composition of the other rooms: ``topiarist.methods.<name>(model, inputs, …)``."""

from topiarist.methods.base import METHODS, Method, method, resolve
from topiarist.methods.best_of_masks import best_of_masks
from topiarist.methods.channel_lasso import channel_lasso
from topiarist.methods.cost_complexity import cost_complexity
from topiarist.methods.data_free import data_free
from topiarist.methods.fpgm import fpgm
from topiarist.methods.gradient_magnitude import gradient_magnitude
from topiarist.methods.hrank import hrank
from topiarist.methods.intra_kernel import intra_kernel
from topiarist.methods.l1_filters import l1_filters
from topiarist.methods.layerwise import layerwise
from topiarist.methods.lottery_ticket import lottery_ticket
from topiarist.methods.magnitude import magnitude
from topiarist.methods.mask_ensemble import mask_ensemble
from topiarist.methods.network_slimming import network_slimming
from topiarist.methods.network_trimming import network_trimming
from topiarist.methods.noiseout import noiseout
from topiarist.methods.optimal_brain_damage import optimal_brain_damage
from topiarist.methods.optimal_brain_surgeon import optimal_brain_surgeon
from topiarist.methods.random_pruning import random_pruning
from topiarist.methods.reduced_error import reduced_error
from topiarist.methods.scratch import scratch
from topiarist.methods.taylor import taylor
from topiarist.methods.thinet import thinet
from topiarist.methods.unit_l2 import unit_l2

__all__ = [
    "METHODS",
    "Method",
    "best_of_masks",
    "channel_lasso",
    "cost_complexity",
    "data_free",
    "fpgm",
    "gradient_magnitude",
    "hrank",
    "intra_kernel",
    "l1_filters",
    "layerwise",
    "lottery_ticket",
    "magnitude",
    "mask_ensemble",
    "method",
    "network_slimming",
    "network_trimming",
    "noiseout",
    "optimal_brain_damage",
    "optimal_brain_surgeon",
    "random_pruning",
    "reduced_error",
    "resolve",
    "scratch",
    "taylor",
    "thinet",
    "unit_l2",
]

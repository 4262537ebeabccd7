"""Published systems, each a short composition of the other rooms: ``topiarist.methods.<name>(model, inputs, …)``."""

from topiarist.methods.base import METHODS, Method, method, resolve
from topiarist.methods.channel_lasso import channel_lasso
from topiarist.methods.cost_complexity import cost_complexity
from topiarist.methods.gradient_magnitude import gradient_magnitude
from topiarist.methods.l1_filters import l1_filters
from topiarist.methods.lottery_ticket import lottery_ticket
from topiarist.methods.magnitude import magnitude
from topiarist.methods.network_slimming import network_slimming
from topiarist.methods.random_pruning import random_pruning
from topiarist.methods.reduced_error import reduced_error
from topiarist.methods.scratch import scratch
from topiarist.methods.thinet import thinet

__all__ = [
    "METHODS",
    "Method",
    "channel_lasso",
    "cost_complexity",
    "gradient_magnitude",
    "l1_filters",
    "lottery_ticket",
    "magnitude",
    "method",
    "network_slimming",
    "random_pruning",
    "reduced_error",
    "resolve",
    "scratch",
    "thinet",
]

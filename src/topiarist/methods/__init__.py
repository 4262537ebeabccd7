"""Published systems, each a short composition of the other rooms: ``topiarist.methods.<name>(model, inputs, …)``."""

from topiarist.methods.adversarial import adversarial
from topiarist.methods.architecture_search import architecture_search
from topiarist.methods.base import METHODS, Method, method, resolve
from topiarist.methods.cost_complexity import cost_complexity
from topiarist.methods.flop import flop
from topiarist.methods.gradient_magnitude import gradient_magnitude
from topiarist.methods.lottery_ticket import lottery_ticket
from topiarist.methods.magnitude import magnitude
from topiarist.methods.pruning_from_scratch import pruning_from_scratch
from topiarist.methods.random_pruning import random_pruning
from topiarist.methods.reduced_error import reduced_error
from topiarist.methods.self_adaptive import self_adaptive

__all__ = [
    "METHODS",
    "Method",
    "adversarial",
    "architecture_search",
    "cost_complexity",
    "flop",
    "gradient_magnitude",
    "lottery_ticket",
    "magnitude",
    "method",
    "pruning_from_scratch",
    "random_pruning",
    "reduced_error",
    "resolve",
    "self_adaptive",
]

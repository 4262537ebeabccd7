"""Published systems, each a short composition of the other rooms: ``topiarist.methods.<name>(model, inputs, …)``."""

from topiarist.methods.base import METHODS, Method, method, resolve
from topiarist.methods.block_drop import block_drop
from topiarist.methods.cost_complexity import cost_complexity
from topiarist.methods.depgraph import depgraph
from topiarist.methods.flap import flap
from topiarist.methods.gradient_magnitude import gradient_magnitude
from topiarist.methods.grasp import grasp
from topiarist.methods.halp import halp
from topiarist.methods.hrank import hrank
from topiarist.methods.lamp import lamp
from topiarist.methods.lottery_ticket import lottery_ticket
from topiarist.methods.low_rank import low_rank
from topiarist.methods.magnitude import magnitude
from topiarist.methods.minitron import minitron
from topiarist.methods.movement import movement
from topiarist.methods.no_training import no_training
from topiarist.methods.random_pruning import random_pruning
from topiarist.methods.reduced_error import reduced_error
from topiarist.methods.rigl import rigl
from topiarist.methods.snip import snip
from topiarist.methods.sparsegpt import sparsegpt
from topiarist.methods.synflow import synflow
from topiarist.methods.two_four import two_four
from topiarist.methods.wanda import wanda

__all__ = [
    "METHODS",
    "Method",
    "block_drop",
    "cost_complexity",
    "depgraph",
    "flap",
    "gradient_magnitude",
    "grasp",
    "halp",
    "hrank",
    "lamp",
    "lottery_ticket",
    "low_rank",
    "magnitude",
    "method",
    "minitron",
    "movement",
    "no_training",
    "random_pruning",
    "reduced_error",
    "resolve",
    "rigl",
    "snip",
    "sparsegpt",
    "synflow",
    "two_four",
    "wanda",
]

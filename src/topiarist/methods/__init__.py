"""Published systems, each a short composition of the other rooms: ``topiarist.methods.<name>(model, inputs, …)``."""

from topiarist.methods.adversarial import adversarial
from topiarist.methods.architecture_search import architecture_search
from topiarist.methods.base import METHODS, Method, method, resolve
from topiarist.methods.best_of_masks import best_of_masks
from topiarist.methods.block_drop import block_drop
from topiarist.methods.channel_lasso import channel_lasso
from topiarist.methods.cost_complexity import cost_complexity
from topiarist.methods.data_free import data_free
from topiarist.methods.depgraph import depgraph
from topiarist.methods.flap import flap
from topiarist.methods.flop import flop
from topiarist.methods.fpgm import fpgm
from topiarist.methods.gradient_magnitude import gradient_magnitude
from topiarist.methods.grasp import grasp
from topiarist.methods.halp import halp
from topiarist.methods.hrank import hrank
from topiarist.methods.intra_kernel import intra_kernel
from topiarist.methods.l1_filters import l1_filters
from topiarist.methods.lamp import lamp
from topiarist.methods.layerwise import layerwise
from topiarist.methods.lottery_ticket import lottery_ticket
from topiarist.methods.low_rank import low_rank
from topiarist.methods.magnitude import magnitude
from topiarist.methods.mask_ensemble import mask_ensemble
from topiarist.methods.minitron import minitron
from topiarist.methods.movement import movement
from topiarist.methods.network_slimming import network_slimming
from topiarist.methods.network_trimming import network_trimming
from topiarist.methods.no_training import no_training
from topiarist.methods.noiseout import noiseout
from topiarist.methods.optimal_brain_damage import optimal_brain_damage
from topiarist.methods.optimal_brain_surgeon import optimal_brain_surgeon
from topiarist.methods.pruning_from_scratch import pruning_from_scratch
from topiarist.methods.random_pruning import random_pruning
from topiarist.methods.reduced_error import reduced_error
from topiarist.methods.rigl import rigl
from topiarist.methods.scratch import scratch
from topiarist.methods.self_adaptive import self_adaptive
from topiarist.methods.snip import snip
from topiarist.methods.sparsegpt import sparsegpt
from topiarist.methods.synflow import synflow
from topiarist.methods.taylor import taylor
from topiarist.methods.thinet import thinet
from topiarist.methods.two_four import two_four
from topiarist.methods.unit_l2 import unit_l2
from topiarist.methods.wanda import wanda

__all__ = [
    "METHODS",
    "Method",
    "adversarial",
    "architecture_search",
    "best_of_masks",
    "block_drop",
    "channel_lasso",
    "cost_complexity",
    "data_free",
    "depgraph",
    "flap",
    "flop",
    "fpgm",
    "gradient_magnitude",
    "grasp",
    "halp",
    "hrank",
    "intra_kernel",
    "l1_filters",
    "lamp",
    "layerwise",
    "lottery_ticket",
    "low_rank",
    "magnitude",
    "mask_ensemble",
    "method",
    "minitron",
    "movement",
    "network_slimming",
    "network_trimming",
    "no_training",
    "noiseout",
    "optimal_brain_damage",
    "optimal_brain_surgeon",
    "pruning_from_scratch",
    "random_pruning",
    "reduced_error",
    "resolve",
    "rigl",
    "scratch",
    "self_adaptive",
    "snip",
    "sparsegpt",
    "synflow",
    "taylor",
    "thinet",
    "two_four",
    "unit_l2",
    "wanda",
]

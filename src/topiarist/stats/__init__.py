"""What data says about a model; collected without leaving a trace on it."""

from topiarist.stats.activations import Gram, Inputs, Moments, collect_inputs
from topiarist.stats.collect import collect
from topiarist.stats.gradients import Gradients, collect_gradients
from topiarist.stats.movement import record_movement
from topiarist.stats.preserve import preserved
from topiarist.stats.statistic import Batch, Need, PerParameter, Statistic, Statistics, Subject
from topiarist.stats.uses import Use, Watch
from topiarist.stats.words import start

__all__ = [
    "Batch",
    "Gradients",
    "Gram",
    "Inputs",
    "Moments",
    "Need",
    "PerParameter",
    "Statistic",
    "Statistics",
    "Subject",
    "Use",
    "Watch",
    "collect",
    "collect_gradients",
    "collect_inputs",
    "preserved",
    "record_movement",
    "start",
]

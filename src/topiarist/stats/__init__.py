"""What data says about a model; collected without leaving a trace on it."""

from topiarist.stats.activations import Gram, Moments, collect_inputs
from topiarist.stats.gradients import collect_gradients
from topiarist.stats.preserve import preserved
from topiarist.stats.uses import Use, Watch

__all__ = ["Gram", "Moments", "Use", "Watch", "collect_gradients", "collect_inputs", "preserved"]

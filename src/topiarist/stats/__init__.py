"""What data says about a model; collected without leaving a trace on it."""

from topiarist.stats.gradients import collect_gradients
from topiarist.stats.preserve import preserved

__all__ = ["collect_gradients", "preserved"]

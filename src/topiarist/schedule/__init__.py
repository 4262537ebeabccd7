"""How much is removed at which step: functions from progress (0 to 1) and the final fraction to the fraction now."""

from topiarist.schedule.constant_fraction import ConstantFraction
from topiarist.schedule.progress import cubic, exponential, linear, one_shot
from topiarist.schedule.words import Schedule, resolve

__all__ = ["ConstantFraction", "Schedule", "cubic", "exponential", "linear", "one_shot", "resolve"]

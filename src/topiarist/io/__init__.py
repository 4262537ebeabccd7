"""Models on disk, without pickle: `save`, `load`, `load_plan`."""

from topiarist.io.load import load, load_plan
from topiarist.io.save import save

__all__ = ["load", "load_plan", "save"]

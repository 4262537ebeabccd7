"""How a budget is spread over layers: allocations, exact selection, and the search for the level that fits a budget."""

from topiarist.allocation.base import Allocation, Candidates
from topiarist.allocation.fit import fit
from topiarist.allocation.global_ import Global
from topiarist.allocation.per_layer import PerLayer
from topiarist.allocation.sensitivity import Cell, Sensitivity, SensitivityTable, analyse
from topiarist.allocation.threshold import Smallest, Threshold
from topiarist.allocation.uniform import Uniform
from topiarist.allocation.words import resolve

__all__ = [
    "Allocation",
    "Candidates",
    "Cell",
    "Global",
    "PerLayer",
    "Sensitivity",
    "SensitivityTable",
    "Smallest",
    "Threshold",
    "Uniform",
    "analyse",
    "fit",
    "resolve",
]

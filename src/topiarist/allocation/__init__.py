"""How a budget is spread over layers: allocations, exact selection, and the search for the level that fits a budget."""

from topiarist.allocation.base import Allocation, Candidates
from topiarist.allocation.fit import fit
from topiarist.allocation.global_ import Global
from topiarist.allocation.per_layer import PerLayer
from topiarist.allocation.uniform import Uniform
from topiarist.allocation.words import resolve

__all__ = ["Allocation", "Candidates", "Global", "PerLayer", "Uniform", "fit", "resolve"]

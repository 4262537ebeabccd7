"""How a budget is spread over layers: allocations, exact selection, and the search for the level that fits a budget."""

from topiarist.allocation.base import Allocation, Candidates
from topiarist.allocation.erk import ErdosRenyi
from topiarist.allocation.fit import fit
from topiarist.allocation.global_ import Global
from topiarist.allocation.isomorphic import Isomorphic
from topiarist.allocation.knapsack import Knapsack
from topiarist.allocation.lamp import Lamp
from topiarist.allocation.outliers import Outliers
from topiarist.allocation.owl import Owl
from topiarist.allocation.per_layer import PerLayer
from topiarist.allocation.sensitivity import Cell, Sensitivity, SensitivityTable, analyse
from topiarist.allocation.threshold import Smallest, Threshold
from topiarist.allocation.tolerance import Tolerance
from topiarist.allocation.uniform import Uniform
from topiarist.allocation.uniform_plus import UniformPlus
from topiarist.allocation.words import needs_table, resolve, takes_budget

__all__ = [
    "Allocation",
    "Candidates",
    "Cell",
    "ErdosRenyi",
    "Global",
    "Isomorphic",
    "Knapsack",
    "Lamp",
    "Outliers",
    "Owl",
    "PerLayer",
    "Sensitivity",
    "SensitivityTable",
    "Smallest",
    "Threshold",
    "Tolerance",
    "Uniform",
    "UniformPlus",
    "analyse",
    "fit",
    "needs_table",
    "resolve",
    "takes_budget",
]

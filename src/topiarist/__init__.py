"""topiarist: prune PyTorch networks. One `Plan`, two executors (`mask` and `shrink`), one invariant (`verify`)."""

from topiarist import allocation, data, graph, methods, models, recover, saliency, schedule, structure
from topiarist.errors import TopiaristError
from topiarist.graph import Axes, trace
from topiarist.io import load, save
from topiarist.mask import mask, unmask
from topiarist.measure import measure
from topiarist.plan import Budget, Plan
from topiarist.planning import plan, sensitivity
from topiarist.pruner import Pruner
from topiarist.pruning import PruneResult, prune
from topiarist.shrink import shrink, verify

__all__ = [
    "Axes",
    "Budget",
    "Plan",
    "PruneResult",
    "Pruner",
    "TopiaristError",
    "allocation",
    "data",
    "graph",
    "load",
    "mask",
    "measure",
    "methods",
    "models",
    "plan",
    "prune",
    "recover",
    "saliency",
    "save",
    "schedule",
    "sensitivity",
    "shrink",
    "structure",
    "trace",
    "unmask",
    "verify",
]

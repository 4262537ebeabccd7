"""The axes engine: run a model once, know which tensor dimensions live and die together."""

from topiarist.graph.axis import Axis, AxisGraph
from topiarist.graph.groups import Axes, AxisInfo
from topiarist.graph.rules import (
    contraction,
    dispatch,
    indexing,
    norm,
    pointwise,
    pool,
    recurrent,
    reduce,
    rule,
    shape,
    spectral,
    windows,
)
from topiarist.graph.run import trace
from topiarist.graph.trace import Trace

__all__ = ["Axes", "Axis", "AxisGraph", "AxisInfo", "Trace", "rule", "trace"]

_RULE_ROOMS = (  # importing them registers their rules
    contraction, dispatch, indexing, norm, pointwise, pool, recurrent, reduce, shape, spectral, windows,
)  # fmt: skip

"""The names of statistics, as criteria ask for them in ``needs``."""

from __future__ import annotations

from collections.abc import Iterable

from topiarist.errors import InputError, nearest
from topiarist.stats.activations import Gram, Inputs, Moments
from topiarist.stats.diagonal import HessianDiagonal
from topiarist.stats.flow import Flow
from topiarist.stats.gates import GateGradients
from topiarist.stats.gradients import Gradients
from topiarist.stats.leave_out import LossChanges
from topiarist.stats.scales import Scales
from topiarist.stats.squares import SquaredExampleGradients, SquaredGradients
from topiarist.stats.statistic import Factory, Need, Statistic, Subject

STATISTICS: dict[str, Factory] = {
    "gradients": Gradients,
    "squared gradients": SquaredGradients,
    "squared gradients of examples": SquaredExampleGradients,
    "hessian diagonal": HessianDiagonal(),
    "gate gradients": GateGradients,
    "loss changes": LossChanges,
    "scales": Scales,
    "flow": Flow,
    "activations": lambda subject: Inputs(subject, Moments),
    "gram": lambda subject: Inputs(subject, Gram),
}


def start(needs: Iterable[Need], subject: Subject) -> dict[Need, Statistic]:
    """What the words, or factories of one's own, stand for: one statistic each, with nothing in it yet.

    Raises:
        InputError: a word is not known, or something is neither a word nor a factory.

    Example:
        >>> from torch import nn
        >>> [type(s).__name__ for s in start({"gradients"}, Subject(nn.Linear(1, 1))).values()]
        ['Gradients']
    """
    return {need: _factory(need)(subject) for need in needs}


def _factory(need: Need) -> Factory:
    if isinstance(need, str):
        if need not in STATISTICS:
            raise InputError(f"no statistic is called {need!r} ({nearest(need, STATISTICS)})")
        return STATISTICS[need]
    if not callable(need):
        raise InputError(f"a need is a word of {[*STATISTICS]} or a function that starts a statistic, got {need!r}")
    return need

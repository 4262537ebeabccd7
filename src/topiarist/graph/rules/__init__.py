"""One small function per operator family: how the dimensions of the outputs follow from those of the inputs.

A rule sees a trace, the operator's output and its arguments, and says what it knows::

    @rule(torch.ops.aten.mm)
    def mm(trace, out, a, b):
        (m, k), (k2, n) = trace[a].axes, trace[b].axes
        trace.contract((a, 1), (b, 0), "mm")
        trace.put(out, (m, n))

Registering an operator twice is an error; `rule` also serves operators of other libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Rule = Callable[..., None]
_Function = TypeVar("_Function", bound=Rule)

RULES: dict[Any, Rule] = {}


def rule(*operators: Any) -> Callable[[_Function], _Function]:
    """Register a rule for ATen operators (packets such as ``torch.ops.aten.mm``, or single overloads).

    Raises:
        ValueError: an operator has a rule already.
    """

    def register(function: _Function) -> _Function:
        for operator in operators:
            if operator in RULES:
                raise ValueError(f"{operator} has a rule already: {RULES[operator].__name__}")
            RULES[operator] = function
        return function

    return register


def named(*names: str) -> list[Any]:
    """The ATen operators of these names that this release of torch has."""
    return [getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)]

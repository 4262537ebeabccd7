"""Recoveries that follow each set of units where one is cut after the other (``sequential`` of `topiarist.prune`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from topiarist.recover.base import Recovery, RecoveryContext
from topiarist.recover.none import NoRecovery
from topiarist.recover.reconstruct import reconstruct
from topiarist.recover.train import Row


@dataclass(frozen=True)
class InTurn:
    """``each`` after each set of units that is cut, ``last`` after the last one of a step.

    Example:
        >>> InTurn(Refit()).last
        NoRecovery()
    """

    each: Recovery
    last: Recovery = field(default_factory=NoRecovery)

    def __call__(self, model: nn.Module, context: RecoveryContext) -> list[Row]:
        """What follows when all sets are cut."""
        return self.last(model, context)


@dataclass(frozen=True)
class Refit:
    """The weights that consume what has just been cut, refitted by least squares to what they gave in the dense model.

    Their inputs are those of the model as it is, cut and mended further up, the targets those of the dense one, so that
    errors do not pile up (He, Zhang, Sun 2017, section 3.2); see `topiarist.recover.reconstruct`.

    Raises:
        InputError: no data, or the dense model is not known.
    """

    max_samples: int = 1024
    ridge: float | None = None

    def __call__(self, model: nn.Module, context: RecoveryContext) -> list[Row]:
        """Refit the consumers of ``context.cut`` in place; of everything where nothing is said of it."""
        data, original, plan = context.compared(self)
        only = None if context.cut is None else {m.tensor for m in context.cut.members if m.side == "in"}
        return reconstruct(model, original, data, plan, max_samples=self.max_samples, ridge=self.ridge, only=only)

"""Recovery after the last cut alone, for schedules of many steps that only then train."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from topiarist.recover.base import Recovery, RecoveryContext
from topiarist.recover.train import Row


@dataclass(frozen=True)
class AtEnd:
    """``recovery`` after the last cut; nothing after those before, as where a network is cut before it is trained.

    Example:
        >>> from topiarist.recover import NoRecovery
        >>> AtEnd(NoRecovery())(nn.Linear(1, 1), RecoveryContext(is_last=False))
        []
    """

    recovery: Recovery

    def __call__(self, model: nn.Module, context: RecoveryContext) -> list[Row]:
        """Mend ``model`` in place, if no cut follows."""
        return self.recovery(model, context) if context.is_last else []

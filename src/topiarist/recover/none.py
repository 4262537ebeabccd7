"""No recovery: the cut model as it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from topiarist.recover.base import RecoveryContext
from topiarist.recover.train import Row


@dataclass(frozen=True)
class NoRecovery:
    """Leave the model as it is.

    Example:
        >>> NoRecovery()(nn.Linear(1, 1), RecoveryContext())
        []
    """

    def __call__(self, model: nn.Module, context: RecoveryContext) -> list[Row]:
        """Nothing happens."""
        return []

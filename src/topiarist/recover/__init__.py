"""What follows a cut: nothing, statistics and least squares without training, or training of one kind or another."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import nn

from topiarist.errors import InputError, nearest
from topiarist.recover.at_end import AtEnd
from topiarist.recover.base import Recovery, RecoveryContext
from topiarist.recover.carry import carry_optimizer
from topiarist.recover.checkpoints import Checkpoints
from topiarist.recover.compensate import Compensate, compensate
from topiarist.recover.distil import Distil
from topiarist.recover.finetune import FineTune
from topiarist.recover.in_turn import InTurn, Refit
from topiarist.recover.no_training import NoTraining
from topiarist.recover.noise_outputs import NoiseOutputs
from topiarist.recover.none import NoRecovery
from topiarist.recover.recalibrate import Recalibrate, recalibrate
from topiarist.recover.recipe import TrainingRecipe
from topiarist.recover.reconstruct import Reconstruct, reconstruct
from topiarist.recover.regrow import Regrow
from topiarist.recover.reinitialize import Reinitialize, reinitialize
from topiarist.recover.rewind import LRRewind, WeightRewind
from topiarist.recover.scratch import Scratch
from topiarist.recover.train import Row, train

__all__ = [
    "AtEnd",
    "Checkpoints",
    "Compensate",
    "Distil",
    "FineTune",
    "InTurn",
    "LRRewind",
    "NoRecovery",
    "NoTraining",
    "NoiseOutputs",
    "Recalibrate",
    "Reconstruct",
    "Recovery",
    "RecoveryContext",
    "Refit",
    "Regrow",
    "Reinitialize",
    "Scratch",
    "TrainingRecipe",
    "WeightRewind",
    "carry_optimizer",
    "compensate",
    "recalibrate",
    "reconstruct",
    "reinitialize",
    "resolve",
    "train",
]

# The words of recipes and of the command line; each stands for the object with its default settings.
NAMES: dict[str, Callable[[], Recovery]] = {
    "none": NoRecovery,
    "fine-tune": FineTune,
    "recalibrate": Recalibrate,
    "rewind": WeightRewind,
    "lr-rewind": LRRewind,
    "reinitialize": Reinitialize,
    "compensate": Compensate,
    "reconstruct": Reconstruct,
    "no-training": NoTraining,
    "distil": Distil,
    "noise-outputs": NoiseOutputs,
    "scratch-E": Scratch,
    "scratch-B": lambda: Scratch(equal="compute"),
}


def resolve(recovery: str | Callable[[nn.Module, RecoveryContext], list[Row]]) -> Recovery:
    """The recovery that a name stands for; an object or a function of the user's stays what it is.

    Raises:
        InputError: no recovery has this name, or what was given cannot be called.

    Example:
        >>> resolve("lr-rewind")
        LRRewind(to_step=None, to_fraction=None, recipe=None)
    """
    if isinstance(recovery, str):
        if recovery not in NAMES:
            raise InputError(f"no recovery is called {recovery!r} ({nearest(recovery, NAMES)})")
        return NAMES[recovery]()
    if not callable(recovery):
        raise InputError(f"a recovery is a name or a function (model, context), got {type(recovery).__name__}")
    return cast(Recovery, recovery)

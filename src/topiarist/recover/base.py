"""What every recovery is given, and what it is: a callable that mends a model after a cut."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from topiarist.errors import InputError
from topiarist.plan import Plan, Units
from topiarist.recover.checkpoints import Checkpoints
from topiarist.recover.recipe import TrainingRecipe
from topiarist.recover.train import Loss, OnStep, Row


@dataclass(frozen=True, eq=False)
class RecoveryContext:
    """What a recovery may use: data, loss, the plan just applied, the ``dense`` model that it was made for, and
    how that was trained.

    ``recipe`` and ``checkpoints`` are those of the training that is rewound; ``progress`` is called with every row
    (see `topiarist.recover.train`), the number of steps in all beside it. ``is_last`` says that no cut follows; ``cut``
    is the set of units that has just been cut, where one goes after the other.
    """

    data: Iterable[Any] | None = None
    loss: Loss | None = None
    plan: Plan | None = None
    checkpoints: Checkpoints | None = None
    progress: OnStep | None = None
    recipe: TrainingRecipe | None = None
    dense: nn.Module | None = None
    is_last: bool = True
    cut: Units | None = None

    def compared(self, recovery: object) -> tuple[Iterable[Any], nn.Module, Plan | None]:
        """The data, the dense model and the plan.

        Raises:
            InputError: the data or the dense model was not given.
        """
        if self.data is None or self.dense is None:
            missing = "data=…" if self.data is None else "the dense=… model"
            name = type(recovery).__name__
            raise InputError(f"{name} follows the dense model on data: it needs {missing}; try recover='none'")
        return self.data, self.dense, self.plan

    def training(self, recovery: object) -> tuple[Iterable[Any], Loss]:
        """The data and the loss.

        Raises:
            InputError: one of them was not given.
        """
        if self.data is None or self.loss is None:
            raise InputError(f"{type(recovery).__name__} trains: it needs data=… and loss=…; try recover='none'")
        return self.data, self.loss

    def original(self, recovery: object, recipe: TrainingRecipe | None) -> TrainingRecipe:
        """``recipe``, or that of the training before.

        Raises:
            InputError: neither is known.
        """
        chosen = recipe or self.recipe
        if chosen is None:
            name = type(recovery).__name__
            raise InputError(f"{name} replays a training: it needs its recipe, try {name}(recipe=TrainingRecipe(…))")
        return chosen


class Recovery(Protocol):
    """Mends ``model`` in place and returns the rows of its training, if it trained."""

    def __call__(self, model: nn.Module, context: RecoveryContext) -> list[Row]: ...

"""What methods share that train before or while they prune, and that stop where accuracy does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from topiarist.asked import named_numbers
from topiarist.errors import InputError
from topiarist.io import load, save
from topiarist.measure import evaluate as evaluate_on
from topiarist.planning import Evaluate
from topiarist.pruning import OnStep
from topiarist.recover import TrainingRecipe
from topiarist.recover.train import Loss


def kept(
    folder: str | Path | None, name: str, build: Callable[[], nn.Module], work: Callable[[], nn.Module]
) -> nn.Module:
    """What ``work`` returned, or the model that an earlier call has kept under ``name`` in ``folder``."""
    if folder is None:
        return work()
    place = Path(folder) / name
    if not place.is_dir():
        save(work(), place)
    return load(place, build=build)


def training(
    method: str, data: Iterable[Any] | None, loss: Loss | None, recipe: TrainingRecipe | None
) -> tuple[Iterable[Any], Loss, TrainingRecipe]:
    """The three, there.

    Raises:
        InputError: one of them is not.
    """
    if data is None or loss is None or recipe is None:
        missing = [name for name, given in (("data", data), ("loss", loss), ("recipe", recipe)) if given is None]
        raise InputError(f"{method} trains: it needs {', '.join(missing)}; try recipe=TrainingRecipe(epochs=10)")
    return data, loss, recipe


def as_first_step(on_step: OnStep | None) -> OnStep | None:
    """Rows of a training before any cut, told as those of the first pruning step."""
    if on_step is None:
        return None
    return lambda row: on_step({"pruning_step": 1, "num_pruning_steps": 1, **row})


@dataclass(frozen=True)
class AtLeast:
    """Whether a row of the curve was judged to have this accuracy."""

    accuracy: float

    def __call__(self, row: Mapping[str, float]) -> bool:
        return row["judged"] >= self.accuracy


def tolerance(
    model: nn.Module,
    drop: float,
    judge: Evaluate | None,
    evaluate: Evaluate | None,
    data: Iterable[Any] | None,
    loss: Loss | None,
) -> tuple[Evaluate, AtLeast]:
    """How a step is evaluated, and the accuracy that ``judge`` must find: ``model``'s own less ``drop``, a fraction.

    What decides is not what is reported: ``judge`` looks at ``data`` where nothing is said, and its accuracy is
    ``"judged"`` in the rows, which ``evaluate`` only joins.

    Raises:
        InputError: nothing says how the accuracy is found.
    """
    chosen = judge_of(judge, data, loss)
    least = chosen(model)["accuracy"] - drop - 1e-12  # accuracies are quotients of counts

    def both(work: nn.Module) -> dict[str, float]:
        return {**(named_numbers(evaluate(work)) if evaluate is not None else {}), "judged": chosen(work)["accuracy"]}

    return both, AtLeast(least)


def judge_of(judge: Evaluate | None, data: Iterable[Any] | None, loss: Loss | None) -> Evaluate:
    """What says how good a model is where that decides something: ``judge``, or loss and accuracy on ``data``.

    Raises:
        InputError: nothing says it, or, once it is called, there is no accuracy.
    """
    if judge is None and (data is None or loss is None):
        raise InputError("this method goes by accuracy: pass data and loss, or judge=function")
    looked: Evaluate = partial(evaluate_on, data=data, loss=loss) if judge is None else judge  # type: ignore[arg-type]

    def checked(model: nn.Module) -> Mapping[str, float]:
        found = looked(model)
        if "accuracy" not in found:
            raise InputError(f"what judges a model must return an accuracy, it returned {[*found]}")
        return found

    return checked

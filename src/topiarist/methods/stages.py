"""What methods share that train before they prune: a stage that is kept in the folder of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from topiarist.errors import InputError
from topiarist.io import load, save
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

"""From a recipe to what a run works on: the network, the data, the loss, and the objects that the words stand for."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from topiarist import models
from topiarist.allocation import needs_table
from topiarist.allocation import resolve as allocation_of
from topiarist.allocation.base import needs_budget
from topiarist.allocation.sensitivity import GRID, SensitivityTable
from topiarist.cli.console import Stages
from topiarist.cli.recipe import Recipe
from topiarist.data import Data, first_batch, import_object, load_data
from topiarist.errors import FormatError, InputError, nearest
from topiarist.inputs import as_batch
from topiarist.io import load
from topiarist.measure import evaluate
from topiarist.measure.executors import prepare
from topiarist.methods import resolve as resolve_method
from topiarist.plan import Budget
from topiarist.planning import plan, require_physical
from topiarist.recover import Distil, FineTune, LRRewind, Recovery, TrainingRecipe, WeightRewind
from topiarist.recover import resolve as recovery_of
from topiarist.recover.train import to_device
from topiarist.saliency import resolve as saliency_of
from topiarist.schedule import WORDS as SCHEDULES
from topiarist.schedule import resolve as schedule_of
from topiarist.structure import resolve as structure_of

Loss = Callable[[Any, Any], Tensor]


_WITH_COLON = ("structure", "allocation")  # parts whose words have arguments and which name no object


@dataclass(frozen=True, eq=False)
class Task:
    """What a run works on: made once from the recipe, before anything is computed."""

    recipe: Recipe
    model: nn.Module
    build: Callable[[], nn.Module]
    data: Data
    loss: Loss

    @classmethod
    def of(cls, recipe: Recipe, stages: Stages) -> Task:
        """Read the data, build the network and load its weights.

        Raises:
            InputError: one of them cannot be found or does not fit.
            FormatError: a file is damaged or holds something else.
        """
        if "" not in sys.path:
            sys.path.insert(0, "")  # package.module:name is looked for in the working directory too
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        data, loss = _data(recipe, stages), _loss(recipe)
        build = _builder(recipe, data)
        torch.manual_seed(recipe.seed)
        model = build() if recipe.weights is None else _loaded(build, recipe.weights)
        try:
            model.to(recipe.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device {recipe.device!r} cannot be used ({error}); try cpu") from error
        return cls(recipe, model, build, data, loss)

    @property
    def example_inputs(self) -> Any:
        """One example, on the network's device."""
        return to_device(self.data.example_inputs, torch.device(self.recipe.device))

    @property
    def batch(self) -> Any:
        """The inputs of the first test batch, on the network's device."""
        return to_device(as_batch(first_batch(self.data.test))[0], torch.device(self.recipe.device))

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Loss and accuracy on the test data."""
        return evaluate(model, self.data.test, self.loss)

    def evaluate_on_training(self, model: nn.Module) -> Mapping[str, float]:
        """Loss and accuracy on the training data, always in the order and augmentation of its first epoch."""
        if hasattr(self.data.train, "set_epoch"):
            self.data.train.set_epoch(0)
        return evaluate(model, self.data.train, self.loss)

    @property
    def training(self) -> TrainingRecipe:
        """How the network is trained before it is pruned."""
        r = self.recipe
        return self._training(r.epochs or 0.0, r.lr, r.lr_schedule)

    def _training(self, epochs: float, lr: float, lr_schedule: str) -> TrainingRecipe:
        r = self.recipe
        return TrainingRecipe(epochs, lr, r.optimizer, r.momentum, r.weight_decay, lr_schedule=lr_schedule)

    @property
    def recovery(self) -> Recovery:
        """What follows each cut."""
        r = self.recipe
        if r.recover in ("rewind", "lr-rewind", "reinitialize", "scratch-E", "scratch-B") and not r.epochs:
            raise InputError(f"recover {r.recover!r} replays the training, and epochs is 0; try recover 'fine-tune'")
        if r.recover in ("fine-tune", "distil"):
            recipe = self._training(r.recover_epochs, r.recover_lr, "constant")
            return FineTune(recipe) if r.recover == "fine-tune" else Distil(recipe)
        if r.recover == "rewind":
            return WeightRewind(to_fraction=r.rewind_to)
        if r.recover == "lr-rewind":
            return LRRewind(to_fraction=r.rewind_to)
        return recovery_of(_object(r.recover))

    @property
    def choice(self) -> dict[str, Any]:
        """Which units there are and how they are scored, as arguments of `topiarist.plan` and its like."""
        r = self.recipe
        structure = structure_of(r.structure, r.round_to, self.model)
        return {
            "structure": structure,
            "saliency": saliency_of(_object(r.saliency)),
            "keep": r.keep,
            "uniform": r.uniform,
        }

    @property
    def amount(self) -> dict[str, Any]:
        """How much goes, and when."""
        r = self.recipe
        options: dict[str, Any] = {**r.budget}
        budget = Budget(**options) if options else None
        schedule = schedule_of(_object(r.schedule, SCHEDULES))
        return {"budget": budget, "schedule": schedule, "steps": r.steps, "min_units": r.min_units}

    @property
    def method_options(self) -> dict[str, Any]:
        """What the method is told beyond data and loss."""
        r = self.recipe
        options = {
            key: _object(value, SCHEDULES) if isinstance(value, str) and key not in _WITH_COLON else value
            for key, value in r.method_options.items()
        }
        if "recover" in options:
            options["recover"] = self.recovery
        told = {"keep": r.keep, "uniform": r.uniform, "round_to": r.round_to}
        options.update({key: value for key, value in told.items() if value})
        return {"budget": self.amount["budget"], **options}

    @property
    def grid(self) -> tuple[float, ...]:
        """The ratios of a sensitivity scan."""
        return self.recipe.grid or GRID

    def check(self) -> None:
        """Try on the network as it is what the run will need later, so that nothing fails after a long training.

        Raises:
            TopiaristError: an option does not fit the network or the data, or the budget cannot be reached.
        """
        r = self.recipe
        if r.method is not None:
            resolve_method(r.method).check(r.method_options)
            _ = self.method_options, self.training
            return
        budget = self.amount["budget"]
        if r.latency_ms is not None:  # timing takes its time: only whether it can be done is tried
            require_physical(self.choice["structure"])
            prepare(copy.deepcopy(self.model), self.example_inputs, r.executor)
            budget = Budget(sparsity=0.0)
        allocation = r.allocation
        if needs_table(allocation):  # the table takes its time: what needs none is checked
            with_table = allocation_of(allocation, SensitivityTable(0.0, 0.0))
            allocation = "uniform" if needs_budget(with_table) else {}
        least = self.amount["min_units"]
        options = {**self.choice, "saliency": "l2", "budget": budget, "min_units": least}
        _ = self.recovery, self.training
        plan(self.model, self.example_inputs, allocation=allocation, **options)


def _object(value: str, words: Container[str] = ()) -> Any:
    """A word as it is, one of ``words`` with arguments too, or the object that ``package.module:name`` names."""
    word, colon, _ = value.partition(":")
    return import_object(value) if colon and word not in words else value


def _data(recipe: Recipe, stages: Stages) -> Data:
    r = recipe
    data = load_data(
        r.data,
        batch_size=r.batch_size,
        seed=r.seed,
        pad=r.pad,
        flip=r.flip,
        mean=r.mean,
        std=r.std,
        progress=None if r.data == "digits" or ":" in r.data else stages.stage(f"read {r.data}").at,
    )
    for batches in (data.train, data.test):
        as_batch(first_batch(batches))
    return data


def _loss(recipe: Recipe) -> Loss:
    if recipe.loss == "cross-entropy":
        return nn.CrossEntropyLoss()
    if ":" not in recipe.loss:
        raise InputError(f"no loss is called {recipe.loss!r}; try 'cross-entropy' or package.module:function")
    loss: Loss = import_object(recipe.loss)
    return loss() if isinstance(loss, type) else loss


def _builder(recipe: Recipe, data: Data) -> Callable[[], nn.Module]:
    """What makes the untrained network, sized for the data where it is one of topiarist's."""
    if recipe.model is not None:
        return _own_builder(recipe.model)
    example = data.example_inputs
    shape = None
    if isinstance(example, Tensor) and example.ndim == 4:
        _, channels, height, width = example.shape
        shape = channels, height, width
    return lambda: models.build(recipe.arch or "my", shape, data.num_classes or 10)


def _own_builder(spec: str) -> Callable[[], nn.Module]:
    if ":" not in spec:
        raise InputError(f"a model is given as package.module:factory, got {spec!r}; --arch takes topiarist's own")
    factory = import_object(spec)

    def build() -> nn.Module:
        try:
            model = factory()
        except Exception as error:  # whatever the user's code raises
            raise InputError(
                f"{spec}() raised {type(error).__name__}: {error}; it is called without arguments"
            ) from error
        if not isinstance(model, nn.Module):
            raise InputError(f"{spec}() must return a torch.nn.Module, it returned {type(model).__name__}")
        return model

    return build


def _loaded(build: Callable[[], nn.Module], path: Path) -> nn.Module:
    """The network with the weights of a folder that topiarist saved, or of a safetensors file with its state dict."""
    if path.is_dir():
        return load(path, build=build)
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise InputError(
            f"there is no file {path}; weights are a safetensors file or a folder topiarist saved"
        ) from None
    except SafetensorError as error:
        raise FormatError(f"{path} is damaged or not a safetensors file ({error})") from error
    model = build()
    own = model.state_dict()
    for name, tensor in weights.items():
        if name in own and tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)} there, {tuple(own[name].shape)} in {type(model).__name__}"
            raise FormatError(f"{path} does not fit: {name} is {shapes}")
    missing, unexpected = model.load_state_dict(weights, strict=False)  # fills in what old batch norms did not count
    for name in (*missing, *unexpected):
        where, other = (path, weights) if name in own else (type(model).__name__, own)
        raise FormatError(f"{path} does not fit: {where} has no {name} ({nearest(name, other)})")
    return model

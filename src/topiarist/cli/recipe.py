"""Every option of a run as one validated value, read from YAML and written back so that the run can be repeated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError

from topiarist.allocation import takes_budget
from topiarist.cli.files import write_text
from topiarist.errors import InputError, nearest
from topiarist.methods import resolve
from topiarist.structure.words import named

FILE = "recipe.yaml"

# Keys of which a run has at most one: one given on the command line puts aside those of the recipe.
_BUDGETS = ("sparsity", "compression", "macs", "params", "bytes", "peak_memory", "latency_ms")
_ALTERNATIVES = (("arch", "model"), _BUDGETS)
_PRESENTATION = ("log_interval", "out")  # what two runs may differ in and be the same

# What a method decides, unless it is told otherwise.
_OF_A_METHOD = ("structure", "saliency", "allocation", "schedule", "steps", "recover", "rewind_to", "options")


def _words(value: Any) -> Any:
    """``"a, b"`` as a list of words."""
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else value


def _settings(value: Any) -> Any:
    """``"scope=layer, seed=3"`` as a dict of values, read as YAML reads them."""
    if not isinstance(value, str):
        return value
    pairs = (pair.partition("=") for pair in value.split(","))
    return {key.strip(): yaml.safe_load(setting) for key, _, setting in pairs}


def _amounts(value: Any) -> Any:
    """``"conv*=0.5, Linear=0.9"`` as a dict of ratios; a single word stays one."""
    if not isinstance(value, str) or "=" not in value:
        return value
    return {key.strip(): ratio for key, _, ratio in (pair.partition("=") for pair in value.split(","))}


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Numbers = Annotated[tuple[FiniteFloat, ...], BeforeValidator(_words)]
Settings = Annotated[dict[str, Any], BeforeValidator(_settings)]
Allocation = Annotated[str | dict[str, FiniteFloat], BeforeValidator(_amounts)]
Least = Annotated[int | FiniteFloat, Field(ge=0)]
Minimum = Annotated[Least | dict[str, Least], BeforeValidator(_amounts)]
Whole = Annotated[int, Field(ge=0)]
Counting = Annotated[int, Field(ge=1)]
Amount = Annotated[FiniteFloat, Field(ge=0)]


class Recipe(BaseModel):
    """The options of a run; each is a key of a YAML recipe and an option of the command line (``batch_size``:
    ``--batch-size``).

    Example:
        >>> Recipe(macs=0.5).budget
        {'macs': 0.5}
        >>> Recipe(allocation="conv*=0.5, Linear=0.9").allocation
        {'conv*': 0.5, 'Linear': 0.9}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: str | None = Field(None, description="a network that comes with topiarist; 'my' unless --model is given")
    model: str | None = Field(None, description="your own: package.module:factory, called without arguments")
    weights: Path | None = Field(None, description="a safetensors file, or a folder that topiarist saved")
    data: str = Field("digits", description="'digits', a folder of parquet files, a hub name, package.module:function")
    batch_size: Counting = Field(64, description="examples per training step")
    mean: Numbers | None = Field(None, description="subtract this from each channel: 0.49,0.48,0.45")
    std: Numbers | None = Field(None, description="and divide by this")
    pad: Whole = Field(0, description="crop training images at random after padding them by this many pixels")
    flip: bool = Field(False, description="mirror every second training image")
    loss: str = Field("cross-entropy", description="'cross-entropy' or package.module:function (outputs, targets)")

    epochs: Amount | None = Field(None, description="epochs of training before pruning; 10, with --weights 0")
    lr: Amount = Field(0.1, description="learning rate of that training")
    lr_schedule: str = Field("cosine", description="'cosine' or 'constant'")
    optimizer: str = Field("sgd", description="'sgd', 'adam' or 'adamw'")
    momentum: Amount = Field(0.9, description="of sgd")
    weight_decay: Amount = Field(5e-4, description="weight decay, in training and fine-tuning")
    seed: int = Field(0, description="of weights and of the order of the data")
    log_interval: Whole = Field(0, description="print a line every so many training steps; 0: the progress bar alone")
    threads: Counting | None = Field(None, description="threads that torch computes with; its own choice unless given")
    device: str = Field("cpu", description="where to compute: cpu, cuda, cuda:1, …")

    method: str | None = Field(None, description="a published system instead of the parts below: topiarist methods")
    options: Settings = Field({}, description="the method's own options: scope=layer,seed=3")
    structure: str = Field(
        "weight", description="what one unit is: 'weight', '2:4', 'block:4x4', 'kernel', 'channel', 'head', …"
    )
    saliency: str = Field("l2", description="'l1', 'l2', 'gradient', 'random' or package.module:function")
    allocation: Allocation = Field(
        "global",
        description="a word, 'global', 'uniform', 'lamp', 'erk', 'knapsack:macs', 'sensitivity', 'threshold:0.5', …, "
        "or ratios by name or type: conv*=0.5,Linear=0.9",
    )
    sparsity: float | None = Field(None, description="budget: the fraction of units removed; 0.9 for weights")
    compression: float | None = Field(None, description="budget: original / remaining parameters")
    macs: float | None = Field(
        None, description="budget: the fraction of MACs that remains; 0.5 for channels and heads"
    )
    params: float | None = Field(None, description="budget: the fraction of parameters that remains")
    bytes: float | None = Field(None, description="budget: the fraction of bytes that remains")
    peak_memory: float | None = Field(
        None, description="budget: the fraction of the peak memory of activations that remains"
    )
    latency_ms: float | None = Field(None, description="budget: at most so many milliseconds a call, measured here")
    latency_batch: Counting | None = Field(None, description="examples in the call that is timed; 1 unless given")
    executor: str = Field("eager", description="what runs the call that is timed: 'eager', 'compiled', 'onnxruntime'")
    keep: Words = Field((), description="patterns of modules whose outputs stay whole: head.*,stem")
    min_units: Minimum | None = Field(
        None, description="units that stay at least of each set: a number, a fraction (0.1), or either by name or type"
    )
    round_to: Counting | Literal["auto"] | None = Field(
        None, description="leave a multiple of this many channels of every axis that is cut: 8, 16, 'auto' by device"
    )
    uniform: str | None = Field(
        None, description="'config': tie sizes across layers so that the model's config describes what is left"
    )
    schedule: str = Field(
        "one-shot",
        description="'one-shot', 'linear', 'cubic', 'polynomial:2', 'cosine', 'exponential', 'constant-fraction', "
        "'one-cycle', 'movement', 'dense-sparse-dense' or a function",
    )
    steps: Counting | None = Field(None, description="pruning steps; what the schedule asks for unless given")
    recover: str = Field(
        "fine-tune",
        description="'none', 'fine-tune', 'no-training', 'reconstruct', 'compensate', 'recalibrate', 'distil', "
        "'rewind', 'lr-rewind', 'reinitialize', 'scratch-E' or 'scratch-B'",
    )
    recover_epochs: Amount = Field(2, description="epochs of fine-tuning after each pruning step")
    recover_lr: Amount = Field(0.01, description="learning rate of fine-tuning")
    rewind_to: Annotated[FiniteFloat, Field(ge=0, le=1)] = Field(
        0.0, description="the part of the training to rewind to, 0 to 1"
    )
    grid: Numbers = Field((), description="ratios of a sensitivity scan: 0.5,0.9; eleven from 0.1 to 0.99 unless given")
    out: Path | None = Field(None, description="folder of the run; runs/ and a name of its own unless given")

    @property
    def budget(self) -> dict[str, Any]:
        """The budget's unit and number, and where a latency is measured; nothing where none is given."""
        found: dict[str, Any] = {unit: value for unit in _BUDGETS if (value := getattr(self, unit)) is not None}
        if self.latency_ms is not None:
            found.update(batch=self.latency_batch, executor=self.executor)
        return found

    @property
    def method_options(self) -> dict[str, Any]:
        """What a method is told: its own options, and of the parts that it is made of those that were given."""
        given = {key: getattr(self, key) for key in _OF_A_METHOD if key in self.model_fields_set}
        return {**{key: value for key, value in given.items() if key != "options"}, **self.options}

    def folder(self, command: str) -> Path:
        """Where the run is kept: ``out``, or a name made of the command, the network and a digest of the options."""
        if self.out is not None:
            return self.out
        name = self.model.rpartition(":")[2] if self.model else self.arch or "my"
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        return Path("runs") / f"{command}-{name}-{digest[:8]}"

    @property
    def identity(self) -> dict[str, Any]:
        """The options that decide the result: all but where it goes and what is printed on the way."""
        return self.model_dump(mode="json", exclude={*_PRESENTATION, *self._left_to_the_method}, exclude_none=True)

    @property
    def _left_to_the_method(self) -> set[str]:
        return set(_OF_A_METHOD) - self.model_fields_set if self.method else set()

    def write(self, path: Path) -> None:
        """Write every option, defaults too, so that the file means the same when they change."""
        options = self.model_dump(mode="json", exclude=self._left_to_the_method, exclude_none=True)
        write_text(path, yaml.safe_dump(options, sort_keys=False, allow_unicode=True))


def read(path: Path | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe in the YAML file ``path``, if there is one, with what is ``given`` beside it taking precedence.

    Raises:
        InputError: the file is missing or not a YAML mapping, a key is not known, or a value does not fit.

    Example:
        >>> read(None, {"lr": 0.05}).lr
        0.05
        >>> read(None, {"sparsty": 0.9})
        Traceback (most recent call last):
        ...
        topiarist.errors.InputError: no option is called 'sparsty' (nearest: sparsity, params, peak_memory)
    """
    options = {} if path is None else _load(path)
    for group in _ALTERNATIVES:
        if any(key in given for key in group):
            options = {key: value for key, value in options.items() if key not in group}
    return make({**options, **given}, "" if path is None else f"{path}: ")


def make(options: Mapping[str, Any], where: str = "") -> Recipe:
    """The recipe that holds ``options`` and what follows from them; ``where`` begins an error's message."""
    for key in options:
        if key not in Recipe.model_fields:
            raise InputError(f"{where}no option is called {key!r} ({nearest(str(key), Recipe.model_fields)})")
    try:
        recipe = Recipe(**{**_defaults(options), **options})
    except ValidationError as error:
        worst = max(error.errors(), key=lambda e: len(e["loc"]))  # of several types that fail, the one that fits best
        raise InputError(f"{where}{worst['loc'][0]}: {worst['msg']}, got {worst['input']!r}") from error
    for group in _ALTERNATIVES:
        both = [key for key in group if getattr(recipe, key) is not None]
        if len(both) > 1:
            raise InputError(f"{where}{' and '.join(both)} are given, a run takes one of them")
    return recipe


def _defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults that depend on other options."""
    given = {key for key, value in options.items() if value is not None}
    found: dict[str, Any] = {"epochs": 0 if "weights" in given else 10}
    if "model" not in given:
        found["arch"] = "my"
    allocation = _amounts(options.get("allocation", "global"))
    if not given & set(_BUDGETS) and isinstance(allocation, str) and takes_budget(allocation):
        by_default = "weight" if options.get("method") is None else resolve(str(options["method"])).structure
        found.update(_default_budget(str(options.get("structure", by_default))))
    return found


def _default_budget(structure: str) -> dict[str, float]:
    """The budget where none is given; none where the structure itself says how much goes."""
    if structure == "weight":
        return {"sparsity": 0.9}
    return {} if getattr(named(structure), "names_amount", False) else {"macs": 0.5}


def _load(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the recipe {path} cannot be read ({error.strerror}); is the path right?") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe {path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        raise InputError(f"the recipe {path} must map options to values, such as 'arch: my', it is {raw!r:.60}")
    return {str(key).replace("-", "_"): value for key, value in raw.items()}

"""The fields of a `Recipe` as options of a command, so that each is written down once."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from topiarist.cli.recipe import Recipe, read

_SCALARS = (bool, int, float, str, Path)

_NETWORK = ("arch", "model", "weights", "data", "batch_size", "mean", "std", "loss", "seed", "threads", "device")
_TRAINING = (
    *("pad", "flip", "epochs", "lr", "lr_schedule", "optimizer", "momentum", "weight_decay", "log_interval"),
    "out",
)
_CHOICE = ("structure", "round_to", "uniform", "saliency", "keep")
_PRUNING = (
    *("method", "options", "min_units"),
    *("allocation", "sparsity", "compression", "macs", "params", "bytes", "peak_memory"),
    *("latency_ms", "latency_batch", "executor", "schedule", "steps"),
    *("recover", "recover_epochs", "recover_lr", "rewind_to", "grid"),
)

LOOK = _NETWORK
TRAIN = (*_NETWORK, *_TRAINING)
SENSITIVITY = (*TRAIN, *_CHOICE, "grid")
PRUNE = (*TRAIN, *_CHOICE, *_PRUNING)


def takes(names: tuple[str, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make ``command(recipe, …)`` a command with the options ``names`` and ``--recipe``, which it gets as one value."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        parameters = [*own, _parameter("recipe", "a YAML file of options; those given beside it take precedence")]
        parameters += [_parameter(name) for name in names]

        def run(recipe: Path | None = None, **options: Any) -> None:
            arguments = {p.name: options.pop(p.name) for p in own}
            given = {name: value for name, value in options.items() if value is not None}
            command(read(recipe, given), **arguments)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _parameter(name: str, help: str = "") -> inspect.Parameter:
    field = Recipe.model_fields.get(name)
    kind = Path if field is None else _kind(field)
    if field is not None:
        told = field.default is not None and field.default is not False and field.default != ()
        help = f"{field.description}" + (f" [{field.default}]" if told else "")
    annotation = Annotated[Optional[kind], typer.Option(help=help, show_default=False)]  # type: ignore[valid-type] # noqa: UP045
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kind(field: FieldInfo) -> Any:
    """What typer reads for the field: its type where that is a plain one, else text that the recipe takes apart."""
    kinds = _alternatives(field.annotation)
    return next((kind for kind in _SCALARS if kinds == {kind}), str)


def _alternatives(annotation: Any) -> set[Any]:
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*(_alternatives(part) for part in get_args(annotation))) - {type(None)}
    return {annotation}

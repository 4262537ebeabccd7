"""Mask ensembles: the mean prediction of a network under many random masks, more exact the more there are."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from topiarist import structure as structures
from topiarist.allocation import resolve as allocation_of
from topiarist.errors import InputError
from topiarist.inputs import as_arguments
from topiarist.mask.ensemble import MaskEnsemble
from topiarist.measure.quiet import undisturbed
from topiarist.methods.base import method
from topiarist.plan import Budget
from topiarist.planning import Evaluate, Planner
from topiarist.pruning import OnStep, PruneResult
from topiarist.recover.train import Row, device_of, to_device
from topiarist.saliency import Random
from topiarist.stats.collect import inputs_of


@method(
    paper="Bouchard-Côté, Petrov, Klein 2009, Randomized pruning: efficiently calculating expectations in large "
    "dynamic programs; here for networks, as finite dropout ensembles (Gal, Ghahramani 2016)",
    structure="weight",
    headline="none for networks; the variance falls as 1/M",
)
def mask_ensemble(
    model: nn.Module,
    example_inputs: Any,
    *,
    num: int = 16,
    seed: int = 0,
    structure: Any = "weight",
    allocation: Any = "uniform",
    budget: Budget | None = None,
    keep: Sequence[str] = (),
    data: Iterable[Any] | None = None,
    evaluate: Evaluate | None = None,
    on_step: OnStep | None = None,
    **_: Any,
) -> PruneResult:
    """Average the predictions of ``num`` random masks with exactly the same numbers of units; nothing is trained.

    The result's model is a `topiarist.mask.ensemble.MaskEnsemble`, its plan the first mask. ``curve`` has a row for
    M = 1, 2, 4, … masks: ``num_masks``, ``macs``, what M runs cost against one of the whole network, what ``evaluate``
    finds, and with ``data`` ``variance``, that of the mean probability: the spread of all masks over M, mean over
    examples and classes.

    Raises:
        InputError: there is no mask to average over.
    """
    if num < 1:
        raise InputError(f"an ensemble has 1 mask or more, got num={num!r}")
    whole = copy.deepcopy(model)
    planner = Planner.of(whole, example_inputs, structures.resolve(structure), keep, None)
    plans = [planner.plan(Random(seed + draw), allocation_of(allocation), budget) for draw in range(num)]
    ensemble = MaskEnsemble(whole, plans)
    spread = None if data is None or num == 1 else _spread(ensemble, data)
    rows: list[Row] = []
    for size in sorted({*(2**k for k in range(num.bit_length()) if 2**k <= num), num}):
        some = ensemble if size == num else MaskEnsemble(whole, plans[:size])
        rows.append(_row(some, len(rows) + 1, plans[0].achieved, spread, evaluate))
        if on_step is not None:
            on_step({**rows[-1], "num_steps": num})
    why = "its masks are many, and those of one plan are what other models are loaded with"
    return PruneResult(ensemble, plans[0], tuple(rows), (), None, {}, "load_state_dict", why)


def _row(
    some: MaskEnsemble, step: int, achieved: Mapping[str, float], spread: float | None, evaluate: Evaluate | None
) -> Row:
    size = some.num_masks
    found: Mapping[str, float] = {} if evaluate is None else evaluate(some)
    known = {} if spread is None else {"variance": spread / size}
    return {"step": step, **achieved, "num_masks": size, "macs": size * achieved["macs"], **known, **found}


def _spread(ensemble: MaskEnsemble, data: Iterable[Any]) -> float:
    """The variance of the masks' probabilities, mean over examples and classes."""
    with undisturbed(ensemble):
        found = [variance.flatten() * ensemble.num_masks for variance in _variances(ensemble, data)]
    if not found:
        raise InputError("the data yielded no batch; is the loader empty, or an iterator that is used up?")
    return float(torch.cat(found).mean())


def _variances(ensemble: MaskEnsemble, data: Iterable[Any]) -> Iterator[Tensor]:
    for batch in data:
        args, kwargs = as_arguments(to_device(inputs_of(batch), device_of(ensemble)))
        yield ensemble.moments(*args, **kwargs)[1]

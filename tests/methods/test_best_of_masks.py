"""Best of N: exact counts, the best by brute force, and what it gains over the mean."""

from __future__ import annotations

import statistics

import pytest
import torch

import topiarist
from topiarist.errors import InputError
from topiarist.measure import evaluate
from topiarist.methods import best_of_masks
from topiarist.saliency import Random

HALF = topiarist.Budget(sparsity=0.5)


@pytest.mark.parametrize("structure", ["channel", "weight"])
def test_it_is_the_best_of_masks_tried_one_by_one(points, structure):
    """Each cut made by `prune` and evaluated; the method's own judgement is by masks that come off again."""
    before = {name: value.clone() for name, value in points.net.state_dict().items()}
    told = {"data": points.data, "loss": points.told["loss"]}
    options = {"structure": structure, "allocation": "uniform", "budget": HALF}
    cuts = [topiarist.prune(points.net, points.x, saliency=Random(seed), **options) for seed in range(8)]
    found = [evaluate(cut.model, **told)["accuracy"] for cut in cuts]
    result = best_of_masks(points.net, points.x, num=8, structure=structure, budget=HALF, recover="none", **told)
    assert [row["judged"] for row in result.curve[:-1]] == pytest.approx(found)
    assert result.plan == cuts[found.index(max(found))].plan
    assert {row["sparsity"] for row in result.curve} == {result.plan.achieved["sparsity"]}
    assert all(torch.equal(value, before[name]) for name, value in points.net.state_dict().items())


def test_the_best_of_fifty_is_far_above_the_mean_and_training_follows(points):
    result = best_of_masks(points.net, points.x, budget=HALF, **points.told)
    judged = [row["judged"] for row in result.curve[:-1]]
    assert len(judged) == 50
    assert max(judged) >= statistics.mean(judged) + 1.5 * statistics.stdev(judged)
    assert result.curve[-1]["accuracy"] > 0.9
    assert result.verification.passed


def test_what_judges_is_not_what_is_reported(points):
    """By a judge of its own: the masks are told apart by what it says, not by `evaluate`."""
    calls = iter([0.1, 0.9, 0.3])
    told = {**points.told, "evaluate": lambda _: {"accuracy": 0.0}, "judge": lambda _: {"accuracy": next(calls)}}
    result = best_of_masks(points.net, points.x, num=3, budget=HALF, recover="none", **told)
    second = topiarist.plan(
        points.net, points.x, structure="channel", saliency=Random(1), allocation="uniform", budget=HALF
    )
    assert result.plan == second
    for options, message in (({"num": 0}, "1 mask or more"), ({"data": None}, "goes by accuracy")):
        with pytest.raises(InputError, match=message):
            best_of_masks(points.net, points.x, budget=HALF, **{**points.told, **options})
    with pytest.raises(InputError, match="must return an accuracy"):
        best_of_masks(points.net, points.x, budget=HALF, judge=lambda _: {"loss": 1.0})

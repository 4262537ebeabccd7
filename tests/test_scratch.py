"""The controls from scratch: epochs by the published arithmetic, weights as the small architecture draws them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from topiarist import Budget
from topiarist.errors import InputError
from topiarist.mask import mask, unmask
from topiarist.plan import Plan
from topiarist.recover import RecoveryContext, Scratch, TrainingRecipe, reinitialize
from topiarist.recover.scratch import draw, stretched

STEP = TrainingRecipe(160, 0.1, lr_schedule=("step", (80, 120), 0.1))


@pytest.mark.parametrize(
    ("ratio", "cap", "epochs", "milestones"),
    [(1.38, None, 220, (110, 165)), (3.0, 2, 320, (160, 240)), (1, None, 160, (80, 120))],
)
def test_epochs_of_equal_compute(ratio: float, cap: float | None, epochs: int, milestones: tuple[int, int]) -> None:
    longer = stretched(STEP, ratio, cap)
    assert (longer.epochs, longer.lr_schedule) == (epochs, ("step", milestones, 0.1))
    assert [longer.lr_at(s, epochs) for s in (milestones[0] - 1, milestones[0])] == [0.1, pytest.approx(0.01)]
    assert stretched(TrainingRecipe(10, lr_schedule="cosine"), 2.5).epochs == 25


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def _plan(net: nn.Module) -> Plan:
    return topiarist.plan(net, torch.zeros(2, 4), structure="channel", budget=Budget(sparsity=0.5))


def test_weights_are_those_of_the_small_architecture() -> None:
    net = _net()
    plan = _plan(net)
    small = topiarist.shrink(net, plan)
    reinitialize(small, seed=3)
    work = mask(copy.deepcopy(net), plan)
    draw(work, plan, seed=3)
    unmask(work, restore=False)
    for name, tensor in topiarist.shrink(work, plan).state_dict().items():
        assert torch.equal(tensor, small.state_dict()[name]), name
    assert not any(work.get_parameter(name)[gone].any() for name, gone in plan.masks(work).items())
    other = copy.deepcopy(net)
    reinitialize(other, seed=3)  # of the big one: another bound, other weights
    assert other[3].weight.abs().max() < small[3].weight.abs().max()


def test_single_weights_follow_their_density() -> None:
    net = nn.Sequential(nn.Linear(400, 300))
    removed = torch.rand(120_000, generator=torch.Generator().manual_seed(1)) < 0.9
    plan = Plan("weight", {"0.weight": removed})
    work = mask(net, plan)
    draw(work, plan)
    left = work[0].weight.detach().flatten()[~removed]
    num = int((~removed).sum()) / 400
    assert left.std().item() == pytest.approx((2 / num) ** 0.5, rel=0.03)  # 12,000 draws: ± 0.7 %
    assert not work[0].weight.flatten()[removed].any()
    unmask(work)


@pytest.mark.parametrize(("word", "factor"), [("scratch-E", 1), ("scratch-B", 2)])
def test_the_words_train_for_equal_epochs_and_equal_compute(word: str, factor: int) -> None:
    net, data = _net(), [(torch.randn(8, 4), torch.arange(8) % 3)]
    result = topiarist.prune(
        net.eval(), torch.zeros(2, 4), structure="channel", budget=Budget(sparsity=0.5), recover=word, data=data,
        loss=F.cross_entropy, recipe=TrainingRecipe(epochs=6, lr=0.1),
    )  # fmt: skip
    assert result.plan.achieved["macs"] == 0.5
    assert len(result.history) == 6 * factor
    assert result.verification is not None
    assert result.verification.passed


def test_what_is_missing_is_said() -> None:
    with pytest.raises(InputError, match=r"'epochs' \(E\) or in 'compute'"):
        Scratch(equal="flops")
    context = RecoveryContext(data=[(torch.zeros(1, 4), torch.zeros(1))], loss=F.mse_loss, recipe=STEP)
    with pytest.raises(InputError, match="what is left of the MACs"):
        Scratch(equal="compute")(_net(), context)

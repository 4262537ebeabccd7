"""NoiseOut: noise makes hidden units alike, its outputs leave no trace, and the loop ends where accuracy does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.methods import noiseout
from topiarist.recover import FineTune, NoiseOutputs, RecoveryContext, TrainingRecipe

LONG = TrainingRecipe(epochs=60, lr=0.05)


def correlation(net: nn.Module, x: torch.Tensor) -> float:
    """The mean |ρ| of the last hidden layer, by NumPy."""
    with torch.no_grad():
        hidden = net[:4](x).numpy().T
    alive = hidden[hidden.std(1) > 1e-6]
    rho = np.abs(np.corrcoef(alive))
    return float(rho[np.triu_indices(len(alive), 1)].mean())


def trained(points, recovery) -> nn.Module:
    net = copy.deepcopy(points.net)
    recovery(net, RecoveryContext(data=points.data, loss=points.told["loss"]))
    return net


def test_noise_outputs_make_hidden_units_alike(points):
    """The same training with and without them."""
    plain = correlation(trained(points, FineTune(LONG)), points.inputs)
    noisy = correlation(trained(points, NoiseOutputs(LONG, num=128, targets="constant")), points.inputs)
    assert noisy > plain + 0.02


@pytest.mark.parametrize("targets", ["gaussian", "binomial", "constant"])
def test_they_leave_no_trace(points, targets):
    net, state = copy.deepcopy(points.net), torch.get_rng_state()
    recovery = NoiseOutputs(TrainingRecipe(epochs=1, lr=0.01), targets=targets)
    rows = recovery(net, RecoveryContext(data=points.data, loss=points.told["loss"]))
    assert net.state_dict().keys() == points.net.state_dict().keys()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert len(rows) == len(points.data)


def test_without_hidden_influence_the_task_is_all_that_is_learned(points):
    """A head that gets no gradient through changes nothing: with a frozen hidden layer both trainings are one."""
    still = TrainingRecipe(epochs=1, lr=0.01)
    nets = []
    for recovery in (FineTune(still), NoiseOutputs(still)):
        net = copy.deepcopy(points.net)
        for parameter in net[:4].parameters():
            parameter.requires_grad_(False)
        recovery(net, RecoveryContext(data=points.data, loss=points.told["loss"]))
        nets.append(net)
    torch.testing.assert_close(nets[0][4].weight, nets[1][4].weight, rtol=0, atol=1e-7)


class ByHand(nn.Module):
    """A product written out, as no layer has it, after a convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.table = nn.Parameter(torch.randn(3, 4 * 36) * 0.1)

    def forward(self, x):
        return torch.relu(self.conv(x)).flatten(1) @ self.table.mT


def test_the_last_product_is_found_however_it_is_written(images):
    rows = NoiseOutputs(TrainingRecipe(epochs=1, lr=0.01), num=5)(
        ByHand(), RecoveryContext(data=images.data, loss=images.told["loss"])
    )
    assert rows[0]["loss"] > 1.0  # the noise is part of it


def test_the_loop_absorbs_and_stops_where_accuracy_does(points):
    result = noiseout(points.net, points.x, steps=4, drop=0.05, budget=topiarist.Budget(sparsity=0.8), **points.told)
    assert result.verification.passed
    assert result.plan.num_removed > 0
    assert result.curve[-1]["judged"] > 0.85
    accuracies = iter([1.0, 1.0, 0.0])
    told = {**points.told, "judge": lambda _: {"accuracy": next(accuracies)}}
    stopped = noiseout(points.net, points.x, steps=4, budget=topiarist.Budget(sparsity=0.8), **told)
    assert [row["step"] for row in stopped.curve] == [1]
    assert stopped.plan.achieved["sparsity"] == pytest.approx(0.2, abs=0.04)


def test_refusals(points):
    with pytest.raises(InputError, match="nearest: gaussian"):
        NoiseOutputs(targets="gausian")
    with pytest.raises(InputError, match="1 noise output"):
        NoiseOutputs(num=0)
    with pytest.raises(InputError, match="no hidden layer"):
        NoiseOutputs()(nn.BatchNorm1d(8), RecoveryContext(data=points.data, loss=points.told["loss"]))
    with pytest.raises(InputError, match="recipe"):
        noiseout(points.net, points.x, data=points.data, loss=points.told["loss"])

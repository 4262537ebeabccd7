"""What every criterion of units must see: a dead neuron, and one of two that are alike, go first and cost nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from topiarist.methods import METHODS

DEAD, TWINS = 2, (0, 5)
AMOUNT = {"allocation": {"0": 1 / 6}}


def planted(kind: str) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        if kind == "dead":
            net[0].weight[DEAD] = 0
            net[0].bias[DEAD] = 0
            net[2].weight[:, DEAD] = 9
        else:
            net[0].weight[TWINS[0]] = 3 * net[0].weight[TWINS[1]]
            net[0].bias[TWINS[0]] = 3 * net[0].bias[TWINS[1]]
    return net


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("network-trimming", "dead"), ("noiseout", "dead"), ("data-free", "dead"), ("unit-l2", "dead"),
        ("taylor", "dead"), ("thinet", "dead"), ("channel-lasso", "dead"), ("layerwise", "dead"), ("noiseout", "twins"),
        ("data-free", "twins"),
    ],
)  # fmt: skip
def test_what_does_nothing_of_its_own_goes_first(name, kind):
    net, x = planted(kind), torch.randn(200, 4).double()
    given = {"data": [(x, torch.arange(200) % 3)], "loss": F.cross_entropy, **AMOUNT}
    if name == "network-trimming":  # says by itself how much goes, or takes a budget
        given |= {"rounds": 1, "drop": 1.0, "budget": topiarist.Budget(sparsity=1 / 6)}
        del given["allocation"]
    if name == "noiseout":  # without training: only what it removes
        still = topiarist.recover.TrainingRecipe(epochs=0)
        given |= {"recipe": still, "each": still, "steps": 1, "drop": 1.0}
    else:
        given["recover"] = "none"
    result = METHODS[name].run(net, x[:1], **given)
    gone = result.plan.removed["0.weight:0"].nonzero().flatten().tolist()
    assert gone == [DEAD] if kind == "dead" else gone in ([TWINS[0]], [TWINS[1]])
    torch.testing.assert_close(result.model(x), net(x), rtol=0, atol=1e-9)
    others = topiarist.prune(net, x[:1], structure="channel", saliency="filter-l2", **AMOUNT).plan
    assert (others.removed["0.weight:0"].nonzero().flatten().tolist() == gone) == (kind == "dead"), "no plant"

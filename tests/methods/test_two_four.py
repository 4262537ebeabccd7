"""2:4: quadruples, the best of six patterns, an order of channels that keeps more, and training once more (F14)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from topiarist import Budget
from topiarist.methods import two_four


def groups(weight):
    """(outputs × groups, 4): neighbours along the inputs."""
    return weight.detach().movedim(1, -1).reshape(-1, 4)


def test_every_quadruple_keeps_the_pattern_of_the_largest_sum(mlp):
    net, x = mlp(8, 16, 12, 4), torch.randn(3, 8).double()
    result = two_four(net, x, order=False)
    for name, p in result.model.named_parameters():
        dense, left = groups(net.get_parameter(name)).abs(), groups(p)
        assert (left != 0).sum(1).unique().tolist() == [2]
        best = torch.stack([dense[:, [*pair]].sum(1) for pair in itertools.combinations(range(4), 2)]).amax(0)
        torch.testing.assert_close(left.abs().sum(1), best)


def test_an_order_of_channels_keeps_more_and_is_the_same_function(mlp):
    net, x = mlp(8, 16, 12, 4, bias=True), torch.randn(3, 8).double()
    kept = []
    for order in (False, True):
        result = two_four(net, x, order=order)
        kept.append(sum(float(p.detach().abs().sum()) for p in result.model.parameters() if p.ndim == 2))
    assert kept[1] > kept[0]
    nothing = two_four(net, x, budget=Budget(sparsity=0.0))
    torch.testing.assert_close(nothing.model(x), net(x), rtol=1e-12, atol=1e-12)
    assert not torch.equal(nothing.model[0].weight, net[0].weight)  # which is not because nothing moved
    whole = two_four(net, x, keep=["0", "2"])
    assert set(whole.plan.removed) == {"4.weight"}


def test_the_training_again_keeps_the_pattern_and_begins_at_the_first_rate(trained, blobs, recipe, accuracy):
    model, _ = trained
    result = two_four(model, blobs[0][0], data=blobs, loss=F.cross_entropy, recipe=recipe)
    assert len(result.history) == 40
    assert result.history[0]["lr"] == recipe.lr
    assert accuracy(result.model) >= accuracy(model) - 0.03
    for name, p in result.model.named_parameters():
        if p.ndim == 2:
            assert int((groups(p) != 0).sum(1).max()) <= 2, name
    assert two_four(model, blobs[0][0], structure="1:4").plan.achieved["sparsity"] == 0.75

"""The sliding window: the refit is NumPy's least squares on the cut prefix, in the order that is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.methods import layerwise

AMOUNTS = {"allocation": {"*": 0.5}}


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)
    ).double()  # fmt: skip


def fitted(inputs: torch.Tensor, target: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias by numpy.linalg.lstsq."""
    ones = np.column_stack([inputs.detach().numpy(), np.ones(len(inputs))])
    found = np.linalg.lstsq(ones, target.detach().numpy(), rcond=None)[0]
    return found[:-1].T, found[-1]


@pytest.mark.parametrize("order", ["shallow-first", "deep-first"])
def test_each_refit_is_least_squares_on_what_the_window_sees(order):
    dense, x = net(), torch.randn(400, 5).double()
    result = layerwise(dense, x[:1], data=[x], order=order, ridge=0.0, **AMOUNTS)
    small = result.model
    first, second = (~result.plan.removed[f"{n}.weight:0"] for n in (0, 2))
    hidden = dense[:2](x)[:, first]  # of the cut first layer
    weight, bias = fitted(hidden, dense[:3](x))
    np.testing.assert_allclose(small[2].weight.detach(), weight[second.numpy()], atol=1e-9)
    np.testing.assert_allclose(small[2].bias.detach(), bias[second.numpy()], atol=1e-9)
    seen = small[:4](x) if order == "shallow-first" else dense[:4](x)[:, second]
    weight, bias = fitted(seen, dense(x))
    np.testing.assert_allclose(small[4].weight.detach(), weight, atol=1e-9)
    np.testing.assert_allclose(small[4].bias.detach(), bias, atol=1e-9)


def test_the_cut_prefix_is_made_up_for_only_from_the_input_on():
    """Asymmetric: of the two orders the one that refits on the cut prefix ends nearer to the original."""
    dense, x = net(), torch.randn(400, 5).double()
    errors = {
        order: float((layerwise(dense, x[:1], data=[x], order=order, **AMOUNTS).model(x) - dense(x)).detach().norm())
        for order in ("shallow-first", "deep-first")
    }
    plain = topiarist.prune(dense, x[:1], structure="channel", saliency="filter-l2", **AMOUNTS)
    assert errors["shallow-first"] < errors["deep-first"] < float((plain.model(x) - dense(x)).detach().norm())


def test_any_criterion_and_what_is_refused(points):
    result = layerwise(points.net, points.x, saliency="taylor", budget=topiarist.Budget(macs=0.6), **points.told)
    assert result.verification.passed
    with pytest.raises(InputError, match="nearest: deep-first"):
        layerwise(points.net, points.x, order="deep", data=points.data)

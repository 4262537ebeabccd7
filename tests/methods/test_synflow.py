"""SynFlow: flow is conserved, no layer is emptied, and neither data nor signs matter (METHODS F3)."""

from __future__ import annotations

import copy

import numpy as np
import torch

from topiarist import Budget
from topiarist.methods import snip, synflow


def by_hand(model, sparsity, steps):
    """The published loop in NumPy: scores of |θ|, a global threshold at density d^(t/steps)."""
    weights = [np.abs(p.detach().numpy()) for p in model.parameters()]
    total = sum(w.size for w in weights)
    for step in range(1, steps + 1):
        forward = [np.ones(weights[0].shape[1])]
        for w in weights:
            forward.append(w @ forward[-1])
        backward = [np.ones(weights[-1].shape[0])]
        for w in reversed(weights):
            backward.insert(0, w.T @ backward[0])
        scores = [w * np.outer(b, f) for w, f, b in zip(weights, forward, backward[1:], strict=False)]
        keep = total - int((1 - (1 - sparsity) ** (step / steps)) * total + 0.5)
        flat = np.concatenate([s.ravel() for s in scores])
        threshold = np.sort(flat)[::-1][keep - 1]
        weights = [np.where(s >= threshold, w, 0) for w, s in zip(weights, scores, strict=True)]
    return [w == 0 for w in weights]


def test_masks_are_those_of_the_published_loop(mlp):
    model, x = mlp(8, 12, 9, 4), torch.zeros(1, 8).double()
    plan = synflow(model, x, steps=20, budget=Budget(sparsity=0.9)).plan
    for gone, expected in zip(plan.removed.values(), by_hand(model, 0.9, 20), strict=True):
        assert np.array_equal(gone.numpy(), expected.ravel())
    once = synflow(model, x, steps=1, budget=Budget(sparsity=0.9)).plan  # the sabotaged twin: one shot is another mask
    assert once != plan


def test_many_steps_leave_a_path_where_one_shot_empties_a_layer(mlp):
    """At a thousandth of the weights, with layers of very different widths."""
    model, x = mlp(64, 128, 16, 4), torch.zeros(1, 64).double()
    budget = Budget(sparsity=0.999)
    left = [int((~gone).sum()) for gone in synflow(model, x, budget=budget).plan.removed.values()]
    assert min(left) > 0
    with torch.no_grad():
        kept = synflow(model, x, budget=budget).model
        assert float(torch.stack([p.abs().sum() for p in kept.parameters()]).min()) > 0
    data, loss = [(torch.randn(8, 64).double(), None)], lambda out, _: out.square().mean()
    shot = snip(model, x, data=data, loss=loss, budget=budget).plan
    assert min(int((~gone).sum()) for gone in shot.removed.values()) == 0


def test_signs_and_data_do_not_matter(mlp):
    model, x = mlp(8, 12, 4), torch.randn(3, 8).double()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(torch.where(torch.rand_like(p) < 0.5, -1.0, 1.0))
    budget = Budget(sparsity=0.8)
    one, two = (synflow(m, inputs, steps=5, budget=budget).plan for m, inputs in ((model, x), (other, -x)))
    assert one == two

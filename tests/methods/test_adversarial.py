"""Adversarial neural pruning: each variant trains by its own losses, and what the mask closes is gone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topiarist import Budget
from topiarist.errors import InputError
from topiarist.mask.gates import BetaBernoulli, Gates
from topiarist.methods import adversarial
from topiarist.methods.adversarial import VARIANTS, _Training
from topiarist.methods.attack import PGD, features_of, vulnerability

ATTACK = PGD(0.1, 0.05, 2, bounds=(0, 1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 3)
    )


@pytest.fixture
def data():
    torch.manual_seed(1)
    return [(torch.rand(8, 1, 6, 6), torch.arange(8) % 3) for _ in range(4)]


def training(net, data, variant, suppression=0.5, divergence=0.01):
    gates = Gates(net, data[0][0], BetaBernoulli) if VARIANTS[variant].masks else None
    return _Training(net, gates, VARIANTS[variant], F.cross_entropy, ATTACK, divergence, suppression)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_by_its_losses(net, data, variant):
    """Each term written out, on the same adversarial examples and the same draw of the mask."""
    it, parts = training(net, data, variant), VARIANTS[variant]
    x, y = data[0]
    with it.attached():
        torch.manual_seed(5)
        of_weights, of_masks, _ = it.losses(x, y)
        torch.manual_seed(5)
        penalty = 0.01 * it.gates.penalty() if parts.masks else 0.0
        if not parts.attacks:
            wanted = wanted_masks = F.cross_entropy(net(x), y) + penalty
        else:
            moved = ATTACK(net, x, y, F.cross_entropy)
            with features_of(net, it.masking()) as features:
                clean, bad = net(torch.cat((x, moved))).chunk(2)
            wanted_masks = F.cross_entropy(bad, y) + penalty
            wanted = (F.cross_entropy(clean, y) + 2 * F.cross_entropy(bad, y)) / 3 + penalty
            wanted = wanted + (0.5 * vulnerability(features) if parts.suppresses else 0)
    torch.testing.assert_close(of_weights, wanted)
    torch.testing.assert_close(of_masks, wanted_masks)


def test_weights_and_masks_follow_their_own_losses(net, data):
    """A mask that is given no loss of its own stays where it is, though the loss of the weights depends on it."""
    it = training(net, data, "anp")
    before = [p.detach().clone() for p in it.gates.parameters()]
    own = it.losses
    object.__setattr__(it, "losses", lambda x, y: (own(x, y)[0], torch.zeros((), requires_grad=True), {"loss": 0.0}))
    moving = [p.detach().clone() for p in net.parameters()]
    it.run(data, 1, (0.01, 0.01), (0.5,), 0.0, None)
    assert all(torch.equal(p, b) for p, b in zip(it.gates.parameters(), before, strict=True))
    assert not any(torch.equal(p, b) for p, b in zip(net.parameters(), moving, strict=True))


def test_features_are_measured_after_masking(net, data):
    it = training(net, data, "anp-vs")
    with torch.no_grad():
        for gate in it.gates.gates:
            gate.a_uc.fill_(-20.0)  # E[π] is far below 0.001: everything is closed
    with it.attached():
        assert float(it.losses(*data[0])[2]["vulnerability"]) == 0
    assert float(training(net, data, "at-vs").losses(*data[0])[2]["vulnerability"]) > 0


def test_what_is_closed_is_gone(net, data):
    """A strong divergence closes units; those, and no others, are cut off, and a budget cuts by E[π]."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    options = {"data": data, "loss": F.cross_entropy, "attack": ATTACK, "validation": data}
    torch.manual_seed(0)
    strong = adversarial(net, data[0][0], epochs=60, mask_lr=0.5, milestones=(), openness=-1, divergence=500, **options)
    assert strong.plan.num_removed > 0
    assert strong.verification.passed
    assert {"clean_accuracy", "attack_accuracy", "vulnerability", "sparsity"} <= set(strong.curve[0])
    torch.manual_seed(0)
    weak = adversarial(net, data[0][0], epochs=1, divergence=0, **options)
    assert weak.plan.num_removed == 0
    assert len(weak.history) == 4
    half = adversarial(net, data[0][0], epochs=1, budget=Budget(macs=0.5), **options)
    assert half.plan.achieved["macs"] <= 0.5
    plain = adversarial(net, data[0][0], epochs=1, variant="at-vs", **options)
    assert plain.plan.num_removed == 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())


def test_what_cannot_be_is_refused(net, data):
    options = {"data": data, "loss": F.cross_entropy}
    with pytest.raises(InputError, match="nearest: anp"):
        adversarial(net, data[0][0], variant="anpp", **options)
    with pytest.raises(InputError, match="learns no mask"):
        adversarial(net, data[0][0], variant="at", budget=Budget(macs=0.5), **options)
    with pytest.raises(InputError, match="no batch"):
        adversarial(net, data[0][0], data=[], loss=F.cross_entropy)

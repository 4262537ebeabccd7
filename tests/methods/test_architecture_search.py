"""TAS: interpolation and sampling by hand, costs as counted, the search in its band, what is found is what runs."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topiarist import Budget, shrink
from topiarist.errors import BudgetError, InputError
from topiarist.mask.widths import Depths, Widths, gumbel, interpolate_channels
from topiarist.measure import macs
from topiarist.methods import architecture_search
from topiarist.methods.architecture_search import Space, chains, cost_term
from topiarist.models import ResNet
from topiarist.recover import TrainingRecipe


def vgg():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 10), nn.ReLU(), nn.Linear(10, 3),
    ).double(), torch.randn(4, 1, 8, 8, dtype=torch.float64)  # fmt: skip


def resnet():
    torch.manual_seed(0)
    return ResNet(20, "B").double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize(("num", "size"), [(4, 2), (5, 3), (3, 7), (6, 6), (1, 4)])
def test_interpolation_by_a_loop(num, size):
    x = torch.randn(2, num, 3, dtype=torch.float64)
    found = interpolate_channels(x, size).numpy()
    for i in range(size):
        first, last = math.floor(i * num / size), math.ceil((i + 1) * num / size)
        np.testing.assert_allclose(found[:, i], x[:, first:last].mean(1).numpy(), rtol=1e-12)
    if num == size:
        assert torch.equal(interpolate_channels(x, size), x)
    torch.testing.assert_close(interpolate_channels(torch.ones(2, num, 3), size), torch.ones(2, size, 3))


def test_the_largest_is_drawn_as_often_as_its_probability():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5], dtype=torch.float64)
    drawn = gumbel(logits.expand(100_000, -1), 1.0)
    frequency = torch.bincount(drawn.argmax(1), minlength=4) / 100_000
    torch.testing.assert_close(frequency.double(), logits.softmax(0), atol=0.01, rtol=0)
    torch.manual_seed(0)
    cold = gumbel(logits.expand(100_000, -1), 1e-4).softmax(1)
    assert float((cold.max(1).values > 0.999).double().mean()) > 0.999
    assert torch.equal(cold.argmax(1), drawn.argmax(1))


def test_weights_read_what_activations_would_be():
    """Σ_j p̄_j CWI(O_1:C_j) on activations, with the same draws, zeros where no channel is."""
    model, x = vgg()
    space = Space.of(model, x)
    widths = space.widths.double()
    for logits in widths.logits:
        nn.init.normal_(logits)
    model.train()
    torch.manual_seed(7)
    widths.replaced.attach()
    out = model(x)
    widths.replaced.detach()
    torch.manual_seed(7)
    h = x
    mixed = {name: _draw(widths, name) for name in widths.readers}
    for place, layer in enumerate(model):
        if place in (3, 8, 10):
            name = {3: "0.weight:0", 8: "3.weight:0", 10: "8.weight:0"}[place]
            h = _mix(h.unflatten(1, (12, 4)) if place == 8 else h, *mixed[name])
            h = h.flatten(1) if place == 8 else h
        h = layer(h)
    torch.testing.assert_close(out, h, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(model(x), out)


def _draw(widths, name):
    logits, candidates = widths.logits[[*widths.sizes].index(name)], widths.sizes[name]
    perturbed = gumbel(logits, widths.temperature)
    drawn = torch.multinomial(perturbed.detach().softmax(0), 2)
    p = perturbed.softmax(0)[drawn]
    return [candidates[int(j)] for j in drawn], p / p.sum()


def _mix(h, chosen, p):
    size = max(chosen)
    parts = [w * interpolate_channels(h[:, :c], size) for w, c in zip(p, chosen, strict=True)]
    return F.pad(sum(parts).movedim(1, -1), (0, h.shape[1] - size)).movedim(-1, 1)


def test_depths_mix_what_layers_return():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 2)).double().train()
    depths = Depths(model, [(["0", "1", "2"], 1)]).double()
    nn.init.normal_(depths.logits[0])
    x = torch.randn(5, 4, dtype=torch.float64)
    depths.attach()
    torch.manual_seed(3)
    out = model(x)
    torch.manual_seed(3)
    p = gumbel(depths.logits[0], 1.0).softmax(0)
    likeliest = model.eval()(x)
    depths.detach()
    h = [model[0](x)]
    h += [model[1](h[0])]
    h += [model[2](h[1])]
    torch.testing.assert_close(out, model[3](sum(w * v for w, v in zip(p, h, strict=True))))
    torch.testing.assert_close(likeliest, model[3](h[int(depths.logits[0].argmax())]))
    there = depths.present(depths.probabilities())
    q = depths.logits[0].softmax(0)
    for name, wanted in zip("012", (1.0, q[1] + q[2], q[2]), strict=True):
        assert there[name].item() == pytest.approx(torch.as_tensor(wanted).item())
    assert not any(module._forward_hooks for module in model.modules())


def test_chains_are_the_stages_of_a_resnet():
    model, x = resnet()
    found = chains(Space.of(model, x).planner.axes)
    assert found == [
        (["layer1.0", "layer1.1", "layer1.2"], 1), (["layer2.1", "layer2.2"], 0), (["layer3.1", "layer3.2"], 0)
    ]  # fmt: skip
    plain, x = vgg()
    assert chains(Space.of(plain, x).planner.axes) == []


@pytest.mark.parametrize("network", [vgg, resnet])
def test_the_cost_of_a_choice_is_what_is_counted(network):
    """20 random choices of widths and depths: the network that the plan makes, counted where torch multiplies; and it
    is the one that is searched with these as the likeliest."""
    model, x = network()
    space = Space.of(model, x)
    whole = macs(model, x).total
    generator = torch.Generator().manual_seed(0)
    for number in range(20):
        choice = tuple(
            tuple(int(torch.randint(len(p), (1,), generator=generator)) for p in parts) for parts in space.logits
        )
        plan = space.plan(choice, {})
        small = shrink(model, plan, x if number == 0 else None)
        counted = macs(small, x).total / whole
        assert space.cost_of(choice) == pytest.approx(counted, rel=1e-12)
        assert plan.achieved["macs"] == pytest.approx(counted, rel=1e-12)
        assert plan.achieved["params"] == sum(map(torch.numel, small.parameters())) / sum(
            map(torch.numel, model.parameters())
        )
        if number < 3:
            _same_as_the_likeliest(space, choice, small, x)


def _same_as_the_likeliest(space, choice, small, x):
    for chosen, parts in zip(choice, space.logits, strict=True):
        for j, logits in zip(chosen, parts, strict=True):
            logits.data.copy_(F.one_hot(torch.tensor(j), len(logits)))
    assert space.likeliest() == choice
    space.model.eval()
    space.widths.replaced.attach()
    space.depths.attach()
    out = space.model(x)
    space.widths.replaced.detach()
    space.depths.detach()
    torch.testing.assert_close(out, small.eval()(x), rtol=1e-9, atol=1e-10)


def test_the_expected_cost_is_the_mean_over_networks():
    """Probabilities of two axes: the mean of the costs of all networks, each as often as it is drawn; an axis that two
    factors of a product share would need more, and none does here."""
    model, x = vgg()
    space = Space.of(model, x, fractions=(0.5, 1.0))
    for logits in space.widths.logits:
        nn.init.normal_(logits)
    p = space.widths.probabilities()
    total = 0.0
    for choice in np.ndindex(*(2 for _ in p)):
        often = math.prod(float(q[j].detach()) for q, j in zip(p.values(), choice, strict=True))
        total += often * space.cost_of((tuple(choice), ()))
    assert float(space.cost(p, []).detach()) == pytest.approx(total, rel=1e-6)


def test_the_cost_term_has_the_sign_of_its_side():
    expected = torch.tensor(0.4, dtype=torch.float64)
    assert float(cost_term(expected, 0.51, 0.5, 0.05)) == pytest.approx(math.log(0.4))
    assert float(cost_term(expected, 0.47, 0.5, 0.05)) == pytest.approx(-math.log(0.4))
    assert float(cost_term(expected, 0.475, 0.5, 0.05)) == 0


@pytest.fixture
def data():
    torch.manual_seed(1)
    x = torch.randn(64, 1, 8, 8, dtype=torch.float64)
    return [(x[i : i + 16], (x[i : i + 16].mean((1, 2, 3)) > 0).long()) for i in range(0, 64, 16)] * 4


def test_the_search_finds_its_band(data):
    """A toy that little width is enough for: from everywhere the likeliest network comes to cost what is asked for."""
    model, x = vgg()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    options = {"data": data, "loss": F.cross_entropy, "epochs": 6, "lr": 0.02, "logits_lr": 0.03}
    torch.manual_seed(0)
    result = architecture_search(model, x, budget=Budget(macs=0.5), **options)
    assert 0.95 * 0.5 <= result.plan.achieved["macs"] <= 0.5
    assert result.verification.passed
    assert macs(result.model, x).total / macs(model, x).total == pytest.approx(result.plan.achieved["macs"])
    found = [row["macs"] for row in result.history if "macs" in row]
    assert min(abs(cost - 0.4875) for cost in found[len(found) // 2 :]) < 0.05
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_is_found_is_distilled(data):
    model, x = vgg()
    options = {"data": data[:4], "loss": F.cross_entropy, "epochs": 1, "budget": Budget(macs=0.6)}
    rows: list[dict[str, float]] = []
    torch.manual_seed(0)
    result = architecture_search(
        model, x, recipe=TrainingRecipe(epochs=1, lr=0.1), validation=data[:2], on_step=rows.append, **options
    )
    assert len(result.history) == 8
    assert {"macs", "expected_macs"} <= set(result.history[0])
    assert rows[-1]["macs"] == result.plan.achieved["macs"]
    torch.manual_seed(0)
    fresh = architecture_search(model, x, validation=data[:2], **options)
    assert fresh.plan == result.plan
    moved = zip(fresh.model.parameters(), result.model.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in moved)


def test_what_cannot_be_is_refused(data):
    model, x = vgg()
    options = {"data": data, "loss": F.cross_entropy, "epochs": 0}
    with pytest.raises(BudgetError, match="smallest"):
        architecture_search(model, x, budget=Budget(macs=0.01), **options)
    with pytest.raises(InputError, match="multiply–accumulates"):
        architecture_search(model, x, budget=Budget(params=0.5), **options)
    with pytest.raises(InputError, match="fractions"):
        architecture_search(model, x, budget=Budget(macs=0.5), fractions=(0,), **options)


def test_a_copy_of_the_widths_stays_within(data):
    """Sabotage: with p̄ over all candidates instead of the two drawn, the constant maps of the test would shrink."""
    model, x = vgg()
    widths: Widths = copy.deepcopy(Space.of(model, x).widths)
    widths.replaced.model.train()
    for name, sizes in widths.sizes.items():
        mixing = widths.mixing(name).double()
        reached = int((mixing.sum(1) > 0).sum())
        assert reached in sizes
        torch.testing.assert_close(mixing[:reached].sum(1), torch.ones(reached, dtype=torch.float64), rtol=1e-5, atol=0)

"""What a plan predicts is what the bill says, exactly: parameters, multiply–accumulates, bytes and peak memory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import topiarist
from topiarist import models
from topiarist.errors import InputError
from topiarist.io import load
from topiarist.measure import bytes_in_memory, bytes_stored, macs, num_nonzero, num_params
from topiarist.plan import Budget
from topiarist.planning import Planner
from topiarist.structure import STRUCTURES, resolve

IMAGE = torch.zeros(2, 3, 32, 32)
NETWORKS = ("my", "mlp", "lenet-300-100", "lenet5", "resnet20", "resnet20-b", "vit")  # the others repeat these


def network(name):
    return models.build(name), torch.zeros(2, *models.INPUT_SHAPES[name])


def without_zeros(model, seed=0):
    """Every number apart from zero, so that what is zero afterwards is what the plan removes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.1)
    return model


def bill(model, x, stored):
    count = macs(model, x)
    return {
        "params": num_nonzero(model),
        "macs": count.nonzero,
        "bytes": bytes_stored(model) if stored else bytes_in_memory(model),
    }


def check(model, x, structure, removed_by):
    """The prices of a plan are the quotients of two bills, the numbers being whole: nothing is rounded."""
    planner = Planner.of(model, x, resolve(structure), (), None)
    try:
        _ = planner.units
    except InputError as error:
        pytest.skip(str(error))  # no convolutions, no heads
    removed = {u.name: removed_by(u.num - u.minimum, u.num) for u in planner.units}
    plan, prices = planner.make(removed), planner.price(removed)
    before = bill(model, x, not planner.structure.is_physical)
    if planner.structure.is_physical:
        after = bill(topiarist.shrink(model, plan), x, False)
    else:
        topiarist.mask(model, plan)
        after = bill(model, x, True)
        topiarist.unmask(model)
    assert {unit: prices[unit] for unit in before} == {unit: after[unit] / before[unit] for unit in before}
    assert prices["compression"] == before["params"] / max(1, after["params"])


def lowest_of(fraction):
    def removed(most, num):
        gone = torch.zeros(num, dtype=torch.bool)
        gone[torch.randperm(num, generator=torch.Generator().manual_seed(num))[: int(fraction * most)]] = True
        return gone

    return removed


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", NETWORKS)
def test_prices_of_our_networks_are_the_bills(name, structure):
    model, x = network(name)
    for fraction in (0.0, 0.37, 1.0):
        check(without_zeros(model), x, structure, lowest_of(fraction))


class Net(nn.Module):
    """Convolutions with groups, a residual sum, a concatenation and a linear layer, of any widths."""

    def __init__(self, a, b, groups, bias):
        super().__init__()
        self.stem = nn.Conv2d(2, a * groups, 3, bias=bias)
        self.norm = nn.BatchNorm2d(a * groups)
        self.grouped = nn.Conv2d(a * groups, a * groups, 3, padding=1, groups=groups, bias=bias)
        self.branch = nn.Conv2d(a * groups, b, 1, bias=bias)
        self.head = nn.Linear((a * groups + b) * 9, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.grouped(x)
        return self.head(torch.cat([x, self.branch(x)], 1).flatten(1))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 2, 3]), st.booleans(),
    st.sampled_from(["weight", "channel"]), st.floats(0, 1),
)  # fmt: skip
def test_prices_of_random_networks_are_the_bills(a, b, groups, bias, structure, fraction):
    check(without_zeros(Net(a, b, groups, bias)), torch.zeros(2, 2, 5, 5), structure, lowest_of(fraction))


def test_what_is_stored_is_what_the_file_holds(tmp_path):
    model = models.build("resnet20")  # its biases and running means are zeros: they are stored as bits
    plan = topiarist.plan(model, IMAGE, budget=Budget(bytes=0.3))
    before = bytes_stored(model)
    topiarist.mask(model, plan)
    folder = topiarist.save(model, tmp_path / "m")
    file = (folder / "model.safetensors").read_bytes()
    assert len(file) - 8 - int.from_bytes(file[:8], "little") == bytes_stored(model)
    assert plan.achieved["bytes"] == bytes_stored(model) / before
    assert 0.29 < plan.achieved["bytes"] <= 0.3
    assert bytes_stored(load(folder, build=lambda: models.build("resnet20"))) == bytes_stored(model)


def test_a_zero_that_was_there_before_is_no_removal_and_yet_no_byte():
    net = nn.Linear(100, 10)
    with torch.no_grad():
        net.weight[:, :50] = 0
    gone = torch.zeros(10, 100, dtype=torch.bool)
    gone[:, 40:60] = True
    planner = Planner.of(net, torch.zeros(1, 100), resolve("weight"), (), None)
    prices = planner.price({"weight": gone.flatten()})
    before = bytes_stored(net)
    topiarist.mask(net, planner.make({"weight": gone.flatten()}))
    assert prices["bytes"] == bytes_stored(net) / before
    assert prices["params"] == 1 - 200 / 1010
    assert num_nonzero(net) < num_params(net) - 200
    sabotaged = before - 4 * int(gone.sum())  # as if every entry removed had been stored
    assert sabotaged != bytes_stored(net)


@pytest.mark.parametrize("num", [1, 7, 8, 1000, 4097])
def test_sizes_are_those_of_the_encoder(num):
    from topiarist.io.format import encode, num_bytes

    for kept in {0, 1, num // 2, num}:
        tensor = torch.zeros(num)
        tensor[:kept] = 1
        assert num_bytes(num, kept, 4) == sum(part.nbytes for part in encode(tensor).values())
        assert num_bytes(num, kept, 4) <= math.ceil(num / 8) + 4 * num

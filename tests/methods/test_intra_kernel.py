"""Patterns inside kernels: kernels that are alike share one, the sums are those of a loop, coarser keeps less."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.methods import intra_kernel
from topiarist.structure import IntraKernel, resolve
from topiarist.structure.intra_kernel import alike


def left(net: nn.Module, x: torch.Tensor, structure: object, name: str = "0.weight") -> np.ndarray:
    """Which places stay: (kernels, places)."""
    plan = topiarist.plan(net, x, structure=structure, allocation="uniform")
    return ~plan.masks(net)[name].flatten(2).flatten(0, 1).numpy()


def planted() -> nn.Sequential:
    """Kernels that live in the first row, and kernels that live in the last column; a little noise elsewhere."""
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.LazyLinear(2))
    net(torch.zeros(1, 4, 6, 6))
    with torch.no_grad():
        net[0].weight.mul_(0.01)
        net[0].weight[::2, :, 0] += 1.0
        net[0].weight[1::2, :, :, 2] -= 2.0
    return net


def test_planted_patterns_are_found():
    net, x = planted(), torch.zeros(1, 4, 6, 6)
    kept = left(net, x, IntraKernel(entries=3, sets=2)).reshape(6, 4, 3, 3)
    row, column = np.zeros((2, 3, 3), dtype=bool)
    row[0], column[:, 2] = True, True
    assert (kept[::2] == row).all()
    assert (kept[1::2] == column).all()


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 8))
@settings(max_examples=15, deadline=None)
def test_every_set_keeps_the_places_with_the_largest_sums(seed, sets, entries):
    """A loop over the sets, given which kernel is in which: no other choice of places keeps more of its energy."""
    kernels = torch.randn(12, 9, generator=torch.Generator().manual_seed(seed)).square().double()
    which = alike(kernels, sets)
    net = nn.Conv2d(3, 4, 3).double()
    with torch.no_grad():
        net.weight.copy_(kernels.sqrt().reshape(4, 3, 3, 3))
    structure = IntraKernel(entries, sets)
    plan = topiarist.plan(net, torch.zeros(1, 3, 5, 5).double(), structure=structure, allocation="uniform")
    kept = ~plan.masks(net)["weight"].reshape(12, 9)
    for one in set(which.tolist()):
        sums = kernels[which == one].sum(0)
        for mask in kept[which == one]:
            assert int(mask.sum()) == entries
            assert float(sums[mask].sum()) == pytest.approx(float(sums.sort(descending=True).values[:entries].sum()))


def test_more_sharing_keeps_less_energy():
    """One place's pattern: of each weight ≥ of each kernel ≥ of each set ≥ of all kernels together."""
    net, x = nn.Conv2d(6, 8, 3), torch.zeros(1, 6, 5, 5)
    energy = net.weight.detach().square().reshape(48, 9).numpy()
    kept = {sets: float(energy[left(nn.Sequential(net), x, IntraKernel(4, sets))].sum()) for sets in (48, 8, 1)}
    best = np.sort(energy, 1)[:, -4:].sum()
    assert np.sort(energy.ravel())[-4 * 48 :].sum() >= best
    assert kept[48] == pytest.approx(float(best), rel=1e-5)
    assert kept[48] > kept[8] > kept[1]


def test_kernels_of_nothing_and_of_one_kind():
    assert alike(torch.zeros(3, 4), 2).tolist() == [0, 0, 0]
    assert set(alike(torch.ones(5, 4), 9).tolist()) == {0}


@pytest.mark.parametrize("structure", ["intra-kernel:4x8", "strided:2", "pattern"])
def test_the_method_trains_on_and_what_is_gone_stays_gone(images, structure):
    result = intra_kernel(images.net, images.x, structure=structure, **images.told)
    assert result.curve[-1]["accuracy"] > 0.9
    for name, gone in result.plan.masks(result.model).items():
        assert float(dict(result.model.named_parameters())[name].detach()[gone].abs().sum()) == 0


def test_by_and_by_and_refusals(images):
    budget = topiarist.Budget(sparsity=0.4)
    result = intra_kernel(images.net, images.x, budget=budget, schedule="linear", steps=2, **images.told)
    assert [row["sparsity"] for row in result.curve] == pytest.approx([0.2, 0.4], abs=0.01)
    assert resolve("intra-kernel:3x2") == IntraKernel(3, 2)
    assert result.plan.structure == "intra-kernel:4x8"
    with pytest.raises(InputError, match="inside kernels"):
        intra_kernel(images.net, images.x, structure="channel")
    with pytest.raises(InputError, match="1 entry or more"):
        IntraKernel(0)
    with pytest.raises(InputError, match="more than 4 places"):
        topiarist.plan(nn.Linear(3, 2), torch.zeros(1, 3), structure="intra-kernel")

"""The invariants over the whole zoo, and proof that each check fails where it should."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from topiarist.errors import InputError, ShrinkError
from topiarist.graph import rehearsal, trace
from topiarist.graph.sizes import Size
from topiarist.graph.trace import Trace
from topiarist.mask import mask, unmask
from topiarist.plan import Plan, Slice
from topiarist.shrink import shrink, verify
from topiarist.testing.invariants import (
    NetworkContract,
    check_agreement,
    check_bill,
    check_symmetry,
    cut_axes,
    disagreement,
    half_of_every_axis,
    is_caught,
    learning,
    nothing_left_behind,
    shifted_plans,
)
from topiarist.testing.zoo import ZOO, build

# Nets in which little or nothing can be cut, and the fraction of parameters that stays: at most this much.
LITTLE = {
    "average_over_features": 0.7,
    "fused_qkv_heads_first": 0.68,
    "fused_qkv_chunk": 0.68,
    "separate_qkv": 0.68,
    "attention_with_computed_scale": 0.75,
    "queries_for_two": 0.62,
    "rotary_attention": 0.68,
    "complex_rotary_attention": 0.68,
    "heads_in_a_loop": 0.84,
    "uneven_chunk": 1.0,
    "tensor_split": 0.79,
    "split_by_size": 1.0,
    "last_channels": 0.62,
    "returns_features": 0.66,
    "coincident_sizes": 0.69,
    "literal_size": 0.7,
    "chosen_rows": 0.63,
    "constant_tables": 0.66,
    "unknown_operator": 0.75,
    "recurrent_layers": 0.8,
    "through_numpy": 0.72,
    "ranked": 0.66,
}
MOST = 0.6  # of all the others


class TestZoo(NetworkContract):
    @pytest.fixture(params=ZOO)
    def network(self, request):
        return build(request.param)


@pytest.mark.parametrize("name", ZOO)
def test_half_of_every_axis_is_a_real_cut(name):
    cut = half_of_every_axis(*build(name))
    left = cut.axes.num_params(cut.axes.sizes(cut.plan.removed)) / cut.axes.num_params()
    assert left <= LITTLE.get(name, MOST)


@pytest.mark.parametrize("name", ZOO)
def test_every_pin_has_a_reason_and_nothing_fails_in_a_rule(name):
    axes = trace(*build(name))
    reasons = [reason for axis in axes.axes for reason in axis.pins]
    assert all(reasons)
    assert not [r for r in reasons if "does not hold" in r or "cannot be read" in r]
    assert axes.training_error is None
    assert all(axis.name in axes.explain(axis.name) for axis in axes.axes)


def test_both_modes_are_compared():
    """The auxiliary head runs in training mode only: a cut of it that is wrong shows nowhere else."""
    model, inputs = build("auxiliary_head")
    cut = half_of_every_axis(model, inputs)
    shifted = list(shifted_plans(cut, "aux1.weight:0"))
    assert all(is_caught(model, plan, inputs) for plan in shifted)


# ------------------------------------------------------------------------------------------- positive controls: cuts


@pytest.mark.parametrize("name", ["mlp", "resnet_option_b", "dense_block", "einsum_attention"])
def test_each_tensor_shifted_by_one_is_caught(name):
    model, inputs = build(name)
    cut = half_of_every_axis(model, inputs)
    for axis in cut.plan.removed:
        for plan in shifted_plans(cut, axis):
            assert is_caught(model, plan, inputs)
            with suppress(InputError, ShrinkError, RuntimeError):
                assert not verify(model, shrink(model, plan), plan, inputs).passed


def test_a_forgotten_statistic_is_caught():
    model, inputs = build("vgg_bn")
    cut = half_of_every_axis(model, inputs)
    slices = {name: pieces for name, pieces in cut.plan.slices.items() if name != "1.running_mean"}
    assert is_caught(model, replace(cut.plan, slices=slices), inputs)


def test_a_forgotten_size_is_caught():
    model, inputs = build("separate_qkv")
    cut = half_of_every_axis(model, inputs)
    assert cut.plan.attributes == {"heads": 2, "dim": 2}
    assert is_caught(model, replace(cut.plan, attributes={}), inputs)


def test_an_engine_that_ties_nothing_is_caught(monkeypatch):
    model, inputs = build("resnet_option_b")
    monkeypatch.setattr(Trace, "unify", lambda self, a, b, operator: a)
    cut = half_of_every_axis(model, inputs)
    assert disagreement_or_failure(cut, inputs) > 1e-6


def test_an_engine_blind_to_division_by_a_size_is_caught(monkeypatch):
    model, inputs = build("mean_by_size")
    monkeypatch.setattr(Trace, "on_value", lambda self, expression: None)
    check_agreement(half_of_every_axis(model, inputs), inputs)  # a rehearsal sees it still
    monkeypatch.setattr(rehearsal, "faults", lambda *_: {})
    cut = half_of_every_axis(model, inputs)
    assert disagreement_or_failure(cut, inputs) > 1e-6


def disagreement_or_failure(cut, inputs):
    try:
        return disagreement(cut.model, cut.plan, inputs)
    except RuntimeError:
        return float("inf")


def test_an_axis_that_misses_a_tensor_is_not_symmetric():
    model, inputs = build("resnet_option_b")
    axes = trace(model, inputs)
    name = axes.free[0]
    for missing in range(len(axes[name].members)):
        kept = axes[name].members[:missing] + axes[name].members[missing + 1 :]
        sabotaged = {name: replace(axes[name], members=kept)}
        with pytest.raises(AssertionError, match="in another order"):
            check_symmetry(model, sabotaged, name, inputs)


def test_an_inexact_axis_fails_the_proof_that_it_is_spared():
    model, inputs = build("layer_norm_mlp")
    cut = half_of_every_axis(model, inputs)
    assert cut.plan.inexact
    assert cut.exact().plan.num_removed == 0
    with pytest.raises(AssertionError, match="relative error"):
        check_agreement(cut, inputs)


def test_a_wrong_bill_is_caught():
    model, inputs = build("lenet")
    cut = half_of_every_axis(model, inputs)
    name, gone = next(iter(cut.plan.removed.items()))
    less = gone.clone()
    less[gone.nonzero()[0]] = False
    with pytest.raises(AssertionError):
        check_bill(cut.axes, {**cut.plan.removed, name: less}, cut.small, inputs)


def test_a_layer_that_no_longer_learns_is_caught():
    model, inputs = build("mlp")
    dead = half_of_every_axis(model, inputs).small
    dead[2].weight.requires_grad_(False)
    assert learning(dead, True, inputs) != learning(model, True, inputs)


# ---------------------------------------------------------------------------------- positive controls: left behind


def _set_bit(model, _):
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-7


LITTER = {
    "hooks": lambda model, _: model[0].register_forward_hook(lambda *_: None),
    "state": _set_bit,
    "modules": lambda model, _: model[0].train(not model[0].training),
    "gradients": lambda model, _: model[0].weight.requires_grad_(False),
    "gradient": lambda model, _: setattr(model[0].weight, "grad", torch.zeros(10, 6)),
    "attribute": lambda model, _: setattr(model[0], "left", 1),
    "integers": lambda model, _: setattr(model[0], "in_features", Size(6, 6, Trace())),
    "identities": lambda model, _: setattr(model[0], "weight", nn.Parameter(model[0].weight.detach().clone())),
    "keys": lambda model, _: model.register_buffer("left", torch.zeros(1)),
    "torch": lambda model, _: torch.rand(1),
    "numpy": lambda model, _: np.random.random(),
    "python": lambda model, _: random.random(),  # noqa: S311
    "fast path": lambda model, _: torch.backends.mha.set_fastpath_enabled(False),
    "grad mode": lambda model, _: torch.set_grad_enabled(False),
    "optimizers": lambda model, _: mask(model, Plan("weight", {"0.weight": torch.zeros(60, dtype=torch.bool)})),
    "inputs": lambda model, inputs: inputs.add_(1),
}


@pytest.mark.parametrize("what", LITTER)
def test_litter_is_found(what):
    model, inputs = build("mlp")
    try:
        with pytest.raises(AssertionError, match="changed"), nothing_left_behind(model, inputs):
            LITTER[what](model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
        torch.set_grad_enabled(True)
        unmask(model)


class FunctionMode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [FunctionMode, DispatchMode])
def test_a_mode_left_on_is_found(mode):
    model, inputs = build("mlp")
    left = mode()
    with pytest.raises(AssertionError, match="process changed"), nothing_left_behind(model, inputs):
        left.__enter__()
    left.__exit__(None, None, None)


def test_cuts_of_a_tensor_that_is_not_there_are_refused():
    model, _ = build("mlp")
    gone = torch.zeros(3, dtype=torch.bool)
    with pytest.raises(InputError, match="does not have"):
        shrink(model, Plan("channel", {}, {"nowhere.weight": (Slice(0, gone),)}))


def test_the_contract_asks_for_a_network():
    with pytest.raises(NotImplementedError, match="fixture `network`"):
        NetworkContract.network.__wrapped__(NetworkContract())


def test_plans_made_twice_are_equal():
    model, inputs = build("vit")
    axes = trace(model, inputs)
    removed = half_of_every_axis(model, inputs).plan.removed
    assert cut_axes(model, axes, removed).plan == half_of_every_axis(model, inputs).plan

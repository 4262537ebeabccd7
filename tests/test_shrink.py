"""Physical pruning: the same class with smaller tensors, nothing else changed, and a proof that can fail."""

from __future__ import annotations

import copy
import importlib
import json
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from topiarist.errors import InputError, ShrinkError
from topiarist.graph import trace
from topiarist.mask.attach import masked
from topiarist.plan import Plan, Slice
from topiarist.recover import FineTune, TrainingRecipe
from topiarist.shrink import shrink, verify
from topiarist.shrink.precision import float64_everywhere
from topiarist.testing.invariants import cut_axes, half_of_every_axis, nothing_left_behind
from topiarist.testing.zoo import Net, build

GONE = torch.tensor([False, True, False])


def chain(*layers):
    return nn.Sequential(*layers)


# ------------------------------------------------------------------------------------------------- what a cut leaves


def test_what_is_left_is_what_indexing_leaves():
    model, inputs = build("mlp")
    cut = half_of_every_axis(model, inputs)
    state, small = model.state_dict(), cut.small.state_dict()
    assert torch.equal(small["0.weight"], state["0.weight"][::2])
    assert torch.equal(small["0.bias"], state["0.bias"][::2])
    assert torch.equal(small["2.weight"], state["2.weight"][::2][:, ::2])
    assert torch.equal(small["4.weight"], state["4.weight"][:, ::2])
    assert torch.equal(small["4.bias"], state["4.bias"])


@pytest.mark.parametrize("name", ["lenet", "vit", "tied_embedding", "spectral_norm", "shared_config"])
def test_the_model_is_untouched_and_shares_nothing(name):
    model, inputs = build(name)
    with nothing_left_behind(model, inputs):
        small = half_of_every_axis(model, inputs).small
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.fill_(7)
    assert type(small) is type(model)


def test_tied_tensors_stay_tied():
    cut = half_of_every_axis(*build("tied_embedding"))
    assert cut.small.output.weight is cut.small.table.weight
    assert cut.small.table.weight.shape == (11, 4)


def test_lists_of_parameters_hold_the_smaller_ones():
    small = half_of_every_axis(*build("parameters_in_a_list")).small
    assert small.weights[0] is small.a
    assert small.a.shape == (6, 5)


def test_plain_tensor_attributes_and_buffers_are_cut():
    small = half_of_every_axis(*build("buffers_with_channels")).small
    assert small.scale.shape == small.mean.shape == (5,)
    assert not isinstance(small.scale, nn.Parameter)


def test_requires_grad_dtype_and_mode_stay():
    model, inputs = build("mlp")
    model.to(torch.bfloat16).eval()[0].weight.requires_grad_(False)
    small = half_of_every_axis(model, inputs.bfloat16()).small
    assert not small.training
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.dtype == torch.bfloat16 and p.grad is None for p in small.parameters())


LAYERS = {
    "linear": (nn.Linear(4, 6), (2, 4), {"out_features": 3}),
    "conv": (nn.Conv2d(4, 6, 3), (2, 4, 5, 5), {"out_channels": 3}),
    "grouped conv": (nn.Conv1d(4, 6, 1, groups=2), (2, 4, 5), {"out_channels": 4, "in_channels": 4}),
    "transposed conv": (nn.ConvTranspose2d(4, 6, 2), (2, 4, 5, 5), {"out_channels": 3, "in_channels": 4}),
    "embedding": (nn.Embedding(7, 6), None, {"embedding_dim": 3, "num_embeddings": 7}),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), (2, 4), {"out_features": 3}),
}
FOLLOWERS = {
    "batch norm": (lambda rank: [nn.BatchNorm1d, nn.BatchNorm2d][rank - 3](6), {"num_features": 3}),
    "group norm": (lambda rank: nn.GroupNorm(6, 6), {"num_groups": 3, "num_channels": 3}),
    "instance norm": (lambda rank: [nn.InstanceNorm1d, nn.InstanceNorm2d][rank - 3](6), {"num_features": 3}),
    "prelu": (lambda rank: nn.PReLU(6), {"num_parameters": 3}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_show_their_new_sizes(name):
    layer, shape, expected = LAYERS[name]
    inputs = torch.zeros(2, 5, dtype=torch.long) if shape is None else torch.randn(shape)
    last = {3: nn.Conv1d(6, 2, 1), 4: nn.Conv2d(6, 2, 1)}.get(inputs.dim(), nn.Linear(6, 2))
    cut = half_of_every_axis(chain(copy.deepcopy(layer), last if shape else nn.Linear(6, 2)), inputs)
    for attribute, value in expected.items():
        assert getattr(cut.small[0], attribute) == value
        assert type(getattr(cut.small[0], attribute)) is int


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("name", FOLLOWERS)
def test_norms_show_their_new_sizes(name, rank):
    make, expected = FOLLOWERS[name]
    conv, shape = [(nn.Conv1d, (2, 4, 5)), (nn.Conv2d, (2, 4, 5, 5))][rank - 3]
    cut = half_of_every_axis(chain(conv(4, 6, 1), make(rank), conv(6, 2, 1)), torch.randn(shape))
    for attribute, value in expected.items():
        assert getattr(cut.small[1], attribute) == value


def test_reading_a_computed_weight_changes_nothing():
    """In training mode, looking at a spectrally normed weight takes a step of the power iteration."""
    model, inputs = build("spectral_norm")
    assert model.training
    axes = trace(model, inputs)
    other = next(name for name in axes.free if name.startswith("2"))
    small = cut_axes(model, axes, {other: torch.arange(8) == 0}).small
    assert torch.equal(small[0].parametrizations.weight[0]._u, model[0].parametrizations.weight[0]._u)


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan("weight", {"0.weight": torch.zeros(6, dtype=torch.bool)}), "use topiarist.mask"),
        (Plan("channel", {}, {"9.weight": (Slice(0, GONE),)}), "'9.weight', which Sequential does not have"),
        (Plan("channel", {}, {"0.wieght": (Slice(0, GONE),)}), "'0.wieght'"),
        (Plan("channel", {}, {"0.weight": (Slice(0, GONE[:2]),)}), "made for size 2 in dimension 0"),
        (Plan("channel", {}, {"0.weight": (Slice(2, GONE),)}), "in dimension 2"),
        (Plan("channel", {}, {"0.training": (Slice(0, GONE),)}), "is no tensor of this model but bool"),
        (Plan("channel", {}, {}, {"0.features": 2}), "no attribute '0.features'"),
    ],
)
def test_plans_of_other_models_are_refused(plan, message):
    model = chain(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with nothing_left_behind(model, torch.zeros(1)), pytest.raises(InputError, match=message):
        shrink(model, plan)


def failing(when):
    def forward(m, x):
        if when(m) and m.a.weight.shape[0] != 8:
            raise ValueError("eight it must be")
        return m.b(m.a(x))

    return Net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("when", "mode"), [(lambda m: not m.training, "evaluation"), (lambda m: m.training, "training")]
)
def test_a_smaller_model_that_does_not_run_is_an_error(when, mode):
    model, inputs = failing(when), torch.randn(2, 5)
    gone = torch.arange(8) < 4
    plan = Plan(
        "channel", {"a": gone}, {n: (Slice(d, gone),) for n, d in [("a.weight", 0), ("a.bias", 0), ("b.weight", 1)]}
    )
    with (
        nothing_left_behind(model, inputs),
        pytest.raises(ShrinkError, match=f"does not run in {mode} mode .*eight it must be.*untouched.*keep="),
    ):
        shrink(model, plan, inputs)
    assert shrink(model, plan).a.out_features == 4  # without inputs nothing is run


def test_a_backward_pass_that_fails_is_an_error():
    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            if grad.shape[-1] != 8:
                raise ValueError("no way back")
            return grad

    model = Net(lambda m, x: m.b(Refuses.apply(m.a(x))), a=nn.Linear(5, 8), b=nn.Linear(8, 4))
    with pytest.raises(ShrinkError, match=r"in training mode .*no way back"):
        shrink(model, half_of_every_axis(model, torch.randn(2, 5)).plan, torch.randn(2, 5))


def test_what_does_not_run_in_the_large_model_either_is_no_failure():
    """Batch norm refuses a single example in training mode."""
    model = chain(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    cut = half_of_every_axis(model, torch.randn(1, 5))
    assert shrink(model, cut.plan, torch.randn(1, 5))[0].out_features == 4


def test_inputs_and_random_state_are_not_used_up():
    model = chain(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    inputs = torch.randn(2, 5)
    cut = half_of_every_axis(model, inputs)
    with nothing_left_behind(model, inputs):
        shrink(model, cut.plan, inputs)
    model, inputs = build("changes_its_input")
    cut = half_of_every_axis(model, inputs)
    with nothing_left_behind(model, inputs):
        shrink(model, cut.plan, inputs)


def test_a_cut_of_nothing_is_a_copy():
    model, _ = build("vit")
    small = shrink(model, Plan("channel", {}))
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), model.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------------------- proof


def test_the_proof_says_what_it_found():
    model, inputs = build("vit")
    cut = half_of_every_axis(model, inputs)
    found = verify(model, cut.small, cut.plan, inputs)
    assert found.passed
    assert found.error <= found.tolerance < found.inexact_error
    assert set(found.exact) | set(found.inexact) == {name for name, gone in cut.plan.removed.items() if gone.any()}
    assert "masked and shrunk agree" in str(found)
    assert "layer norm runs over it" in str(found)


def test_a_proof_that_fails_says_so():
    model, inputs = build("mlp")
    cut = half_of_every_axis(model, inputs)
    wrong = {**cut.plan.slices, "0.bias": (Slice(0, cut.plan.slices["0.bias"][0].removed.roll(1)),)}
    plan = replace(cut.plan, slices=wrong)
    found = verify(model, shrink(model, plan), plan, inputs)
    assert not found.passed
    assert "DIFFER" in str(found)
    assert found.error > 1e-3


def test_a_trained_or_foreign_model_is_refused():
    model, inputs = build("mlp")
    cut = half_of_every_axis(model, inputs)
    small = cut.small
    with torch.no_grad():
        small[0].weight[0, 0] += 1
    with pytest.raises(InputError, match=r"0\.weight of the smaller model.*right after shrink"):
        verify(model, small, cut.plan, inputs)
    with pytest.raises(InputError, match="of the smaller model"):
        verify(model, build("lenet")[0], cut.plan, inputs)


@pytest.mark.parametrize("norm", [nn.Identity(), nn.LayerNorm(8)], ids=["exact", "inexact"])
def test_the_very_model_that_is_handed_in_is_proved(norm):
    """Its tensors may be right and the rest of it wrong: a number in Python, or code."""
    parts = {"first": nn.Linear(5, 8), "norm": norm, "second": nn.Linear(8, 8), "last": nn.Linear(8, 4), "factor": 2.0}
    model = Net(lambda m, x: m.last(torch.relu(m.second(m.norm(m.first(x)))) * m.factor), **parts)
    x = torch.randn(3, 5)
    plan = topiarist.plan(model, x, structure="channel", budget=topiarist.Budget(sparsity=0.5))
    small = shrink(model, plan, x)
    assert verify(model, small, plan, x).passed
    small.factor = 3.0
    assert not verify(model, small, plan, x).passed


def test_a_layer_that_begins_at_zero_hides_nothing():
    """With a last layer of zeros every output is zero, and any cut would pass."""
    model = chain(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))
    nn.init.zeros_(model[2].weight)
    inputs = torch.randn(2, 5)
    cut = half_of_every_axis(model, inputs)
    wrong = {**cut.plan.slices, "0.weight": (Slice(0, cut.plan.slices["0.weight"][0].removed.roll(1)),)}
    plan = replace(cut.plan, slices=wrong)
    assert not verify(model, shrink(model, plan), plan, inputs).passed
    assert verify(model, cut.small, cut.plan, inputs).passed


def outputs_net(function):
    return Net(lambda m, x: function(m.b(F.relu(m.a(x)))), a=nn.Linear(5, 8), b=nn.Linear(8, 4)), torch.randn(2, 5)


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.masked_fill(y > 0, -torch.inf),
        lambda y: torch.complex(y, y * 2),
        lambda y: {"y": y, "best": y.argmax(-1)},
        lambda y: (y.float(), y.half(), y.to(torch.float32).double()),
        lambda y: y[:, :0],
    ],
)
def test_outputs_of_all_kinds_are_compared(function):
    model, inputs = outputs_net(function)
    cut = half_of_every_axis(model, inputs)
    assert verify(model, cut.small, cut.plan, inputs).error == pytest.approx(0, abs=1e-12)


def test_what_is_not_a_number_never_agrees_wherever_it_stands():
    model, inputs = outputs_net(lambda y: (y, y / 0 * 0, y))
    cut = half_of_every_axis(model, inputs)
    assert verify(model, cut.small, cut.plan, inputs).error == float("inf")


def test_a_parameter_at_the_edge_of_a_domain_does_not_fail_the_proof():
    """Moving weights a little makes the logarithm of a small one undefined; that proves nothing."""
    model = Net(lambda m, x: m.b(m.a(x)) * m.scale.log(), a=nn.Linear(5, 8), b=nn.Linear(8, 4))
    model.scale = nn.Parameter(torch.full((20, 1, 1), 1e-3))
    inputs = torch.randn(2, 5)
    cut = half_of_every_axis(model, inputs)
    assert verify(model, cut.small, cut.plan, inputs).passed


def wrong_plan(cut, tensor):
    piece = cut.plan.slices[tensor][0]
    return replace(cut.plan, slices={**cut.plan.slices, tensor: (Slice(piece.dim, piece.removed.roll(1)),)})


def test_layers_of_almost_nothing_hide_nothing():
    """Scales near zero after each of thirty layers: what comes out of them is beyond the tolerance of the proof."""
    layers = [layer for _ in range(30) for layer in (nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, eps=1e-3))]
    model = chain(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    for norm in model[1:60:2]:
        nn.init.normal_(norm.weight, std=0.02)
    inputs = torch.randn(2, 6, 3, 3)
    cut = half_of_every_axis(model, inputs)
    plan = wrong_plan(cut, "0.weight")
    assert verify(model, cut.small, cut.plan, inputs).passed
    assert not verify(model, shrink(model, plan), plan, inputs).passed


def test_what_the_model_draws_is_the_same_in_every_run():
    model = Net(lambda m, x: m.b(m.a(x)) * torch.rand(4) + torch.randn(2, 4), a=nn.Linear(5, 8), b=nn.Linear(8, 4))
    inputs = torch.randn(2, 5)
    cut = half_of_every_axis(model, inputs)
    plan = wrong_plan(cut, "a.weight")
    before = torch.get_rng_state()
    assert verify(model, cut.small, cut.plan, inputs).passed
    assert not verify(model, shrink(model, plan), plan, inputs).passed
    assert torch.equal(torch.get_rng_state(), before)


def test_what_the_model_keeps_of_a_run_does_not_get_into_the_next():
    def forward(m, x):
        if not m.kept:
            m.kept["table"] = m.table.exp()
        return m.b(m.a(x) * m.kept["table"])

    model = Net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 4), table=nn.Parameter(torch.randn(8)), kept={})
    inputs = torch.randn(2, 5)
    cut = half_of_every_axis(model, inputs)
    assert list(cut.plan.removed) == ["a.weight:0"]
    assert verify(model, cut.small, cut.plan, inputs).passed


def test_a_model_without_float64_is_told_so():
    def forward(m, x):
        if x.dtype == torch.float64:
            raise NotImplementedError("\"addmm\" not implemented for 'Double'")
        return m.b(m.a(x))

    model, inputs = Net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 4)), torch.randn(2, 5)
    cut = half_of_every_axis(model, inputs)
    with pytest.raises(InputError, match=r"does not run in float64.*not implemented for 'Double'.*your own data"):
        verify(model, cut.small, cut.plan, inputs)


@pytest.mark.parametrize("ends", [[4, 4, 7], [0, 3, 6], [7, 7, 7]])
def test_grouped_products_in_float64_are_those_of_a_loop(ends):
    """Rows beyond the last group come out as zero; torch leaves them as they are."""
    rows, matrices, offs = torch.randn(7, 4), torch.randn(3, 4, 8), torch.tensor(ends, dtype=torch.int32)
    with float64_everywhere():
        found = F.grouped_mm(rows.double(), matrices.double(), offs=offs)
    expected = torch.zeros(7, 8, dtype=torch.float64)
    for group in range(3):
        for row in range(ends[group - 1] if group else 0, ends[group]):
            expected[row] = rows[row].double() @ matrices[group].double()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    in_float32 = F.grouped_mm(rows, matrices, offs=offs)[: ends[-1]]
    torch.testing.assert_close(found[: ends[-1]].float(), in_float32, rtol=1e-5, atol=1e-5)


def test_the_default_type_is_put_back_after_an_error():
    with pytest.raises(KeyError), float64_everywhere():
        raise KeyError
    assert torch.get_default_dtype() == torch.float32
    assert torch.ones(1).double().float().dtype == torch.float32


def test_everything_through_the_front_door():
    model, inputs = build("resnet_option_a")
    plan = topiarist.plan(model, inputs, structure="channel", budget=topiarist.Budget(macs=0.5))
    small = topiarist.shrink(model, plan, inputs)
    assert topiarist.verify(model, small, plan, inputs).passed
    assert plan.achieved["macs"] <= 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(inputs)


@pytest.mark.parametrize("sabotaged", [False, True])
def test_the_order_of_dimensions_in_memory_stays(monkeypatch, sabotaged):
    """Channels last stay last; the oracle is torch's own conversion of what is left."""
    if sabotaged:
        monkeypatch.setattr(importlib.import_module("topiarist.shrink.apply"), "laid_out", lambda small, like: small)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    inputs = torch.randn(2, 3, 6, 6)
    plan = topiarist.plan(model, inputs, structure="channel", budget=topiarist.Budget(sparsity=0.5))
    small = shrink(model, plan, inputs)
    expected = copy.deepcopy(small).to(memory_format=torch.channels_last)
    agree = [a.stride() == b.stride() for a, b in zip(small.parameters(), expected.parameters(), strict=True)]
    assert all(agree) is not sabotaged
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), expected.parameters(), strict=True))


def test_any_other_order_in_memory_stays_too():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    model[2].weight = nn.Parameter(torch.randn(8, 5).t())
    plan = topiarist.plan(model, torch.randn(2, 6), structure="channel", budget=topiarist.Budget(sparsity=0.5))
    small = shrink(model, plan)
    assert small[2].weight.stride() == (1, 5)
    assert torch.equal(small[2].weight, model[2].weight[:, ~plan.removed["0.weight:0"]])


def weight_normed():
    """Two layers with weights g · v / |v|, and a third."""
    weight_norm = torch.nn.utils.parametrizations.weight_norm
    layers = weight_norm(nn.Linear(6, 12)), nn.ReLU(), weight_norm(nn.Linear(12, 8)), nn.ReLU(), nn.Linear(8, 4)
    return nn.Sequential(*layers)


def test_a_weight_norm_trains_under_a_mask_and_is_what_is_left():
    """Scales are zero while masked, directions are not: a zero has none."""
    torch.manual_seed(0)
    model, x, targets = weight_normed(), torch.randn(32, 6), torch.randint(0, 4, (32,))
    recipe = TrainingRecipe(epochs=1, lr=0.1, momentum=0.9)
    result = topiarist.prune(
        model, x, structure="channel", budget=topiarist.Budget(sparsity=0.5), steps=3, data=[(x, targets)] * 4,
        loss=F.cross_entropy, recover=FineTune(recipe),
    )  # fmt: skip
    assert (result.plan.inexact, result.verification.passed) == ({}, True)
    assert all(bool(p.isfinite().all()) for p in result.model.parameters())
    again = Plan.from_json(result.plan.to_json())
    assert (again, json.loads(again.to_json())["version"]) == (result.plan, 3)
    assert {s.is_zeroed for s in again.slices["0.parametrizations.weight.original1"] if s.dim == 0} == {False}


def test_a_mask_over_directions_too_has_no_value():
    """The sabotaged twin: rows of a direction that are zero as well."""
    model, x = weight_normed(), torch.randn(3, 6)
    plan = topiarist.plan(model, x, structure="channel", budget=topiarist.Budget(sparsity=0.5))
    everywhere = {name: tuple(replace(s, is_zeroed=True) for s in own) for name, own in plan.slices.items()}
    with masked(model, plan):
        assert bool(model(x).isfinite().all())
    with masked(model, replace(plan, slices=everywhere)):
        assert bool(model(x).isnan().any())


class Normed(nn.Module):
    """A layer with weights g · v / |v|, whose outputs are read by another one and summed."""

    def __init__(self, scale, direction=lambda v: v, shape=(8, 5)):
        super().__init__()
        self.first, self.v, self.last = nn.Linear(6, 5), nn.Parameter(torch.randn(shape)), nn.Linear(8, 4)
        self.parameter = nn.Parameter(1 + torch.rand(8, 1))
        self.register_buffer("buffer", 1 + torch.rand(8, 1))
        self.scale, self.direction = scale, direction

    def forward(self, x):
        weight = torch._weight_norm(self.direction(self.v), self.scale(self), 0)
        hidden = torch.relu(self.first(x)) @ weight.t()
        return self.last(hidden) + hidden.sum(-1, keepdim=True)


NORMED = {
    "a parameter": (Normed(lambda m: m.parameter), None),
    "a buffer, which no mask zeroes": (Normed(lambda m: m.buffer), "sum"),
    "computed, and not zero with what it is computed from": (Normed(lambda m: m.parameter.exp()), "sum"),
    "a direction that is computed": (Normed(lambda m: m.parameter, torch.tanh), None),
    "a direction of another shape": (
        Normed(lambda m: m.parameter, lambda v: v.flatten(1), (8, 5, 1)),
        "a norm without a value at zero",
    ),
}


@pytest.mark.parametrize("name", NORMED)
def test_a_weight_norm_is_exact_where_a_mask_zeroes_its_scale(name):
    model, inexact = copy.deepcopy(NORMED[name][0]), NORMED[name][1]
    x = torch.randn(3, 6)
    found = [str(reason).partition(" runs over it")[0] for reason in trace(model, x)["v:0"].inexact]
    assert found == ([] if inexact is None else [inexact])
    result = topiarist.prune(model, x, structure="channel", budget=topiarist.Budget(sparsity=0.5))
    assert result.verification.passed
    assert bool(result.plan.removed["v:0"].any())


def test_a_weight_norm_is_pruned_and_proved():
    weight_norm = torch.nn.utils.parametrizations.weight_norm
    model = nn.Sequential(
        weight_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    )
    inputs = torch.randn(2, 3, 6, 6)
    result = topiarist.prune(model, inputs, structure="channel", budget=topiarist.Budget(sparsity=0.5))
    kept = ~result.plan.removed["0.parametrizations.weight.original0:0"]
    assert result.verification.passed
    assert torch.equal(result.model[0].weight, model[0].weight[kept])

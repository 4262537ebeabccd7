"""Sizes that become values: the weights that make up for it, and only those."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import topiarist
from topiarist.errors import FormatError
from topiarist.graph import folds, trace
from topiarist.graph.multiples import Factor, Part, overlap, places
from topiarist.io import load_plan
from topiarist.plan import Plan, Scale
from topiarist.recover.reinitialize import reinitialize
from topiarist.recover.scratch import draw
from topiarist.shrink import shrink, verify
from topiarist.shrink.precision import in_float64
from topiarist.testing.invariants import cut_axes, half_of_every_axis, is_caught
from topiarist.testing.zoo import Net, build

CARRIED = {
    "attention_with_default_scale": ["q.bias", "q.weight"],
    "attention_with_computed_scale": ["q.bias", "q.weight"],
    "fused_attention_with_scale_in_place": ["qkv.bias", "qkv.weight"],
    "queries_for_two": ["k.bias", "k.weight"],
    "scaled_embedding": ["table.weight"],
    "mean_by_size": ["first.bias", "first.weight", "second.bias", "second.weight", "third.bias", "third.weight"],
}


@pytest.mark.parametrize("name", CARRIED)
def test_the_function_stays(name: str) -> None:
    model, inputs = build(name)
    before = copy.deepcopy(model.state_dict())
    cut = half_of_every_axis(model, inputs)
    assert sorted(cut.plan.rescaled) == CARRIED[name]
    assert verify(model, cut.small, cut.plan, inputs).passed
    assert not is_caught(model, cut.exact().plan, inputs)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", CARRIED)
@pytest.mark.parametrize("sabotage", [lambda f: 1 / f, lambda f: 1.0, lambda f: f**2])
def test_a_wrong_factor_is_caught(name: str, sabotage: Any) -> None:
    model, inputs = build(name)
    plan = half_of_every_axis(model, inputs).exact().plan
    wrong = {key: tuple(replace(s, factor=sabotage(s.factor)) for s in own) for key, own in plan.rescaled.items()}
    sabotaged = replace(plan, rescaled=wrong)
    assert is_caught(model, sabotaged, inputs)
    assert not verify(model, shrink(model, sabotaged), sabotaged, inputs).passed


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """softmax(q kᵀ · scale) v of (tokens, dim), in NumPy."""
    scores = np.exp(q @ k.T * scale)
    return scores / scores.sum(1, keepdims=True) @ v


def test_a_cut_of_queries_and_keys_against_a_loop() -> None:
    """Heads of the shrunk model divide by √2; what they return is that of the old ones, which divided by √5, without
    the places that went."""
    model, inputs = build("fused_attention_with_scale_in_place")
    model, inputs = in_float64(model), inputs.double()
    axes = trace(model, inputs)
    name = next(a.name for a in axes.axes if a.size == 5 and not a.pins)
    gone = torch.tensor([True, False, True, False, True])
    small = cut_axes(model, axes, {name: gone}).small
    x, weights = inputs.numpy(), {n: p.detach().numpy() for n, p in model.named_parameters()}
    rows = (x @ weights["qkv.weight"].T + weights["qkv.bias"]).reshape(2, 5, 3, 3, 5)
    kept = rows[..., ~gone.numpy()]
    out = np.zeros((2, 5, 3, 2))
    for b in range(2):
        for h in range(3):
            out[b, :, h] = attention(*(kept[b, :, i, h] for i in range(3)), 5**-0.5)
    columns = weights["out.weight"].reshape(6, 3, 5)[:, :, ~gone.numpy()].reshape(6, 6)
    expected = out.reshape(2, 5, 6) @ columns.T + weights["out.bias"]
    np.testing.assert_allclose(small(inputs).detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    assert small.dim == 2


def test_of_a_fused_weight_the_rows_of_one_factor_alone() -> None:
    model, inputs = build("fused_attention_with_scale_in_place")
    ((scale,), _) = half_of_every_axis(model, inputs).plan.rescaled.values()
    ((dim, rows),) = scale.within
    assert dim == 0
    assert rows.nonzero().flatten().tolist() in (list(range(15)), list(range(15, 30)))  # queries, or keys
    assert scale.factor == pytest.approx((3 / 5) ** 0.5)


def test_a_fresh_instance_computes_the_same(tmp_path: Path) -> None:
    model, inputs = build("attention_with_default_scale")
    cut = half_of_every_axis(model, inputs)
    topiarist.save(cut.small, tmp_path, plan=cut.plan)
    loaded = topiarist.load(tmp_path, build=lambda: build("attention_with_default_scale", seed=5)[0])
    assert torch.equal(loaded(inputs), cut.small(inputs))
    assert load_plan(tmp_path) == cut.plan


def test_plans_with_it_are_read_back_and_others_are_as_before() -> None:
    plan = half_of_every_axis(*build("attention_with_default_scale")).plan
    assert Plan.from_json(plan.to_json()) == plan
    assert '"version": 3' in plan.to_json()
    assert plan != replace(plan, rescaled={})
    assert '"version": 1' in replace(plan, rescaled={}).to_json()
    with pytest.raises(FormatError, match="factor"):
        Plan.from_json(replace(plan, rescaled={"q.weight": (Scale(-1.0, ()),)}).to_json())


def test_weights_drawn_anew_are_those_of_the_smaller_model() -> None:
    model, inputs = build("attention_with_default_scale")
    plan = half_of_every_axis(model, inputs).plan
    drawn = copy.deepcopy(shrink(model, plan))
    reinitialize(drawn, 0)
    draw(model, plan)
    torch.testing.assert_close(shrink(model, plan).q.weight, drawn.q.weight)


class Blocks(nn.Module):
    """Attention several times, with its default scale."""

    def __init__(self, dims: list[int]) -> None:
        super().__init__()
        self.q = nn.ModuleList([nn.Linear(6, d) for d in dims])
        self.k = nn.ModuleList([nn.Linear(6, d) for d in dims])

    def forward(self, x: Tensor) -> Tensor:
        for q, k in zip(self.q, self.k, strict=True):
            x = x + F.scaled_dot_product_attention(q(x), k(x), x)
        return x


def test_every_layer_has_its_own_factor() -> None:
    torch.manual_seed(0)
    model, inputs = Blocks([4, 4, 4, 6, 4]), torch.randn(2, 3, 6)
    axes = trace(model, inputs)
    removed = {
        f"q.{i}.weight:0": torch.arange(axes[f"q.{i}.weight:0"].size) < num for i, num in enumerate((1, 0, 2, 5))
    }
    cut = cut_axes(model, axes, removed)
    factors = {name: scales[0].factor for name, scales in cut.plan.rescaled.items() if name.endswith("weight")}
    assert factors == pytest.approx(
        {"q.0.weight": (3 / 4) ** 0.5, "q.2.weight": 0.5**0.5, "q.3.weight": (1 / 6) ** 0.5}
    )
    assert verify(model, cut.small, cut.plan, inputs).passed


def cosine(m: Any, x: Tensor) -> Tensor:
    q, k = F.normalize(m.q(x), dim=-1), F.normalize(m.k(x), dim=-1)
    return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** 0.5, -1) @ x


def returned(m: Any, x: Tensor) -> Any:
    q, k = m.q(x), m.k(x)
    mixed = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1) @ x
    return (mixed, q.abs().sum(-1) + k.abs().sum(-1)) if m.training else mixed


def logarithm(m: Any, x: Tensor) -> Tensor:
    q, k = m.q(x), m.k(x)
    return torch.softmax(q @ k.transpose(-2, -1) / (1 + q.shape[-1] / 2), -1) @ x


def tied(m: Any, x: Tensor) -> Tensor:
    q, k = m.q(x), F.linear(x, m.q.weight)
    return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1) @ x


@pytest.mark.parametrize("forward", [cosine, returned, logarithm, tied])
def test_what_no_weight_can_make_up_for_is_pinned(forward: Any) -> None:
    """Nothing between is linear; the weights are read elsewhere as well; no power of the size; one weight twice."""
    model = Net(forward, q=nn.Linear(6, 5), k=nn.Linear(6, 5))
    axis = trace(model, torch.randn(2, 3, 6))["q.weight:0"]
    assert [reason.kind for reason in axis.pins] == ["value"]
    assert "test_folds.py" in axis.pins[0].where


def test_explain_names_the_number_and_the_weights_that_make_up_for_it() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.softmax(m.q(x) @ m.k(x).transpose(-2, -1) * m.k(x).shape[-1] ** -0.5, -1) @ m.v(x)

    layers = {name: nn.Linear(6, 5) for name in ("q", "k", "v")}
    axes = trace(Net(forward, **layers), torch.randn(2, 3, 6))
    (said,) = [line for line in axes.explain("q.weight:0").splitlines() if "the code says a number" in line]
    assert "test_folds.py" in said
    assert "is made up for in" in said
    assert ("q.weight" in said) != ("k.weight" in said)
    assert "the code says" not in axes.explain("v.weight:0")


def test_an_engine_that_forgets_other_readers_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(lambda m, x: (returned(m.train(), x), m.eval())[0], q=nn.Linear(6, 5), k=nn.Linear(6, 5))
    inputs = torch.randn(2, 3, 6)
    monkeypatch.setattr(folds, "_is_read_without", lambda *_: False)
    cut = half_of_every_axis(model, inputs)
    assert cut.plan.rescaled
    assert is_caught(model, cut.exact().plan, inputs)


def test_a_scale_made_once_stays_what_it_is() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.softmax(m.q(x) @ m.k(x).transpose(-2, -1) * m.scale, -1) @ x

    model, inputs = Net(forward, q=nn.Linear(6, 5), k=nn.Linear(6, 5), scale=5**-0.5), torch.randn(2, 3, 6)
    cut = half_of_every_axis(model, inputs)
    assert cut.plan.num_removed
    assert not cut.plan.rescaled
    assert cut.small.scale == 5**-0.5
    assert verify(model, cut.small, cut.plan, inputs).passed


def test_places_of_a_part_by_counting() -> None:
    part = Part("w", (4, 0), ((Factor(2, 0, 6),), (Factor(3, 1, 1), Factor(7, None, 0))), (Factor(2, 0, 1),))
    assert places(part) == ({4 + 6 * i + j for i in range(2) for j in range(2)}, {0, 1, 2})
    other = Part("w", (6, 0), None, (Factor(3, 1, 1),))
    assert not overlap(frozenset({part}), frozenset({other}))
    assert overlap(frozenset({part}), frozenset({other._replace(offset=(5, 2), rest=())}))
    assert not overlap(frozenset({part}), frozenset({part._replace(tensor="v")}))


def test_axes_that_are_inexact_beside_it_in_single_precision() -> None:
    """The proof runs in float64, what is known of the model by its own precision."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.norm(m.first(x).mT)
        return m.last(F.scaled_dot_product_attention(m.q(x), m.k(x), x))

    layers = {"first": nn.Conv1d(6, 8, 1), "norm": nn.LayerNorm(8), "q": nn.Linear(8, 5), "k": nn.Linear(8, 5)}
    model, inputs = Net(forward, **layers, last=nn.Linear(8, 4)).float(), torch.randn(2, 6, 3)
    cut = half_of_every_axis(model, inputs)
    found = verify(model, cut.small, cut.plan, inputs)
    assert cut.plan.rescaled
    assert found.inexact
    assert found.passed

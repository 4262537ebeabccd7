"""Explaining axes: shares against real cuts, advice for every kind of pin, lines of the model's code, and stubs."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import topiarist
from topiarist.errors import InputError
from topiarist.graph import Axes, Trace, trace
from topiarist.graph.explain import WIDTH, is_extent, rows, ties
from topiarist.graph.reasons import ADVICE, FIXED, Kind, Reason
from topiarist.graph.rules import RULES
from topiarist.measure import macs
from topiarist.models import build as network
from topiarist.testing.invariants import cut_axes
from topiarist.testing.zoo import ZOO, Net, build

# ------------------------------------------------------------------------------------------------ what hangs on an axis

# Networks of all kinds: residual and dense sums, groups, heads, embeddings, streams that a layer reads and returns.
CUT = ["mlp", "vgg_bn", "resnet_option_b", "dense_block", "depthwise", "vit", "tied_embedding", "glu_by_chunk", "u_net"]


def real_shares(model: nn.Module, inputs: Any, axes: Axes, name: str) -> dict[str, float]:
    """Parameters and MACs that really vanish with one index, times the size: counted on the model that was cut."""
    axis = axes[name]
    gone = torch.zeros(axis.size, dtype=torch.bool)
    gone[axis.size // 2] = True
    small = cut_axes(model, axes, {name: gone}).small
    counts = {"params": lambda m: sum(p.numel() for p in m.parameters()), "macs": lambda m: macs(m, inputs).total}
    return {of: (count(model) - count(small)) * axis.size / count(model) for of, count in counts.items()}


def wrong_shares(axes: Axes, model: nn.Module, inputs: Any, factor: float = 1.0) -> list[str]:
    found = []
    for axis in (a for a in axes.axes if not a.pins and not a.step):
        real = real_shares(model, inputs, axes, axis.name)
        said = {"params": factor * axes.share(axis), "macs": factor * axes.share(axis, "macs")}
        if said != pytest.approx(real, rel=1e-12):
            found.append(axis.name)
    return found


@pytest.mark.parametrize("name", CUT)
def test_shares_are_what_vanishes_with_one_unit(name: str) -> None:
    model, inputs = build(name)
    axes = trace(model, inputs)
    assert wrong_shares(axes, model, inputs) == []
    assert wrong_shares(axes, model, inputs, factor=1.01)  # the check can fail


def test_what_hangs_on_an_axis_is_the_sum_over_its_layers() -> None:
    axes = trace(network("resnet20"), torch.zeros(1, 3, 32, 32))
    for axis in axes.axes:
        layers = {m.tensor.rpartition(".")[0] for m in axis.members}
        assert sum(axes.layer_share(axis, layer) for layer in layers) == pytest.approx(axes.share(axis))


def test_layers_come_in_the_order_in_which_they_run_and_say_whether_they_return_the_axis() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.third(torch.relu(m.first(x) + m.second(x)))

    parts = {"third": nn.Linear(8, 4), "second": nn.Linear(5, 8), "first": nn.Linear(5, 8)}
    axes = trace(Net(forward, **parts), torch.zeros(2, 5))
    found = ties(axes, axes["second.weight:0"])
    assert [(tie.layer, tie.returns) for tie in found] == [("first", True), ("second", True), ("third", False)]
    assert [tie.depth for tie in found] == sorted(tie.depth for tie in found)


# --------------------------------------------------------------------------------------------------- reasons and advice


def _unused() -> tuple[nn.Module, Any]:
    return Net(lambda m, x: m.a(x), a=nn.Linear(5, 8), unused=nn.Linear(5, 8)), torch.zeros(2, 5)


def _training_fails() -> tuple[nn.Module, Any]:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = m.a(x)
        if m.training:
            m.aux(hidden).view(3, 1000)
        return m.b(hidden)

    return Net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 4), aux=nn.Linear(8, 6)), torch.zeros(2, 5)


def _remainder() -> tuple[nn.Module, Any]:
    def forward(m: Any, x: Tensor) -> Any:
        a, b, c = m.a(x).split(m.size, -1)
        return m.b(a + b) + m.c(c)

    return Net(forward, a=nn.Linear(5, 8), b=nn.Linear(3, 4), c=nn.Linear(2, 4), size=3), torch.zeros(2, 5)


def _shuffled() -> tuple[nn.Module, Any]:
    return nn.Sequential(nn.Conv2d(3, 12, 1), nn.ChannelShuffle(3), nn.Conv2d(12, 4, 1)), torch.zeros(1, 3, 4, 4)


def _constant() -> tuple[nn.Module, Any]:
    constant = torch.randn(8)
    return Net(lambda m, x: m.b(m.a(x) * constant), a=nn.Linear(5, 8), b=nn.Linear(8, 4)), torch.zeros(2, 5)


def _branching() -> tuple[nn.Module, Any]:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = m.a(x)
        return m.b(hidden * 2 if len(hidden[0]) > 6 else hidden)

    return Net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 4)), torch.zeros(2, 5)


class _Configured(nn.Module):
    """No field of the config says how wide the first layer is."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, config.width)
        self.last = nn.Linear(config.width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)))


MORE = {f.__name__: f for f in (_unused, _training_fails, _remainder, _shuffled, _constant, _branching)}


@pytest.fixture(scope="module")
def traced() -> dict[str, Axes]:
    """Every small network, traced."""
    found = {name: trace(*build(name)) for name in ZOO} | {name: trace(*make()) for name, make in MORE.items()}
    configured = trace(_Configured(SimpleNamespace(width=6)), torch.zeros(2, 5), "config")
    return {**found, "_configured": configured}


def unadvised(axes: Axes) -> Iterator[str]:
    """Axes whose explanation lacks a reason, the place of one, or what to do about one."""
    for axis in axes.axes:
        text = axes.explain(axis.name)
        for reason in axis.pins or axis.inexact:
            known = type(reason) is Reason and (reason.where or reason.module or reason.kind in PLACELESS)
            sentence = "to know" if reason.kind in (*FIXED, "inexact") else "to free it"
            if not known or str(reason) not in text or ADVICE[reason.kind] not in text:
                yield f"{axis.name}: {reason}"
            if len({r.kind in FIXED for r in axis.pins}) == 1 and f"  {sentence}: " not in text:
                yield f"{axis.name}: {reason}"


PLACELESS = {"input", "output", "unused", "training", "single", "config"}  # they come from the trace, not from a line


def test_every_pin_of_the_zoo_says_why_where_and_what_to_do(traced: dict[str, Axes]) -> None:
    assert {name: found for name, axes in traced.items() if (found := list(unadvised(axes)))} == {}


def test_a_pin_without_a_kind_is_found() -> None:
    axes = trace(*build("mlp"))
    object.__setattr__(axes.axes[0], "pins", (Reason("no place"),))
    assert list(unadvised(axes))


def test_the_zoo_has_every_kind_of_reason(traced: dict[str, Axes]) -> None:
    found = {reason.kind for axes in traced.values() for axis in axes.axes for reason in (*axis.pins, *axis.inexact)}
    assert set(ADVICE) == set(get_args(Kind))
    assert set(ADVICE) - found <= {"single", "rule", "config"}  # not listed; rules hold in the zoo; needs uniform=


def test_lines_are_those_of_the_models_code(traced: dict[str, Axes]) -> None:
    places = {r.where for axes in traced.values() for axis in axes.axes for r in (*axis.pins, *axis.inexact)} - {""}
    files = {place.rpartition(":")[0] for place in places}
    nets = {"models/vit.py", "models/resnet.py", "mask/dense.py", "tests/test_explain.py"}
    assert {file for file in files if not file.startswith("zoo/")} <= nets


def test_where_no_code_is_the_models_own_the_module_is_named() -> None:
    axes = trace(nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10), nn.Linear(10, 4)), torch.zeros(2, 6))
    (reason,) = axes["0.weight:0"].inexact
    assert (reason.where, reason.module) == ("", "1")
    assert "inexact because layer norm runs over it, in 1\n" in axes.explain("0.weight:0")


def test_a_module_that_raises_inside_of_one_that_goes_on_keeps_the_names_right() -> None:
    def fails(m: Any, x: Tensor) -> Any:
        raise KeyError("caught outside")

    def forward(m: Any, x: Tensor) -> Any:
        try:
            return m.broken(x)
        except KeyError:
            return m.norm(m.first(x))

    inner = Net(forward, broken=Net(fails), first=nn.Linear(6, 8), norm=nn.LayerNorm(8))
    axes = trace(nn.Sequential(inner, nn.Linear(8, 4)), torch.zeros(2, 6))
    assert [reason.module for reason in axes["0.first.weight:0"].inexact] == ["0.norm"]


# ----------------------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("name", ["resnet20", "vit", "unfolded", "unknown_operator"])
def test_the_table_has_every_axis_and_fits_the_width(name: str) -> None:
    axes = trace(network(name), torch.zeros(1, 3, 32, 32)) if name == "resnet20" else trace(*build(name))
    text, _, _ = axes.explain().partition("\nno rule for")
    assert max(map(len, text.splitlines())) <= WIDTH
    packed = "".join(text.split())  # long names are folded
    shown = [axis for axis in axes.axes if not is_extent(axis)]
    for axis, row in zip(axes.axes, rows(axes), strict=True):
        line = f"{axis.size}{axes.share(axis):.3f}{axes.share(axis, 'macs'):.3f}{row.status}"
        said = "".join(row.reasons[0].split()) if row.reasons else ""
        assert (line in packed and said in packed) or is_extent(axis)
    assert f"and {len(axes.axes) - len(shown)} extents of kernels" in text or len(shown) == len(axes.axes)
    assert axes.summary() == axes.explain()


def test_what_an_axis_ties_is_shortened() -> None:
    text = trace(network("resnet20"), torch.zeros(1, 3, 32, 32)).explain()
    assert re.search(r"^conv1\.weight:0 +16 +\d\.\d{3} +\d\.\d{3} +free +ties bn1, layer1\.0\.conv1 \+27$", text, re.M)


def test_what_is_explained_holds_no_tensor_of_the_trace() -> None:
    """A trace is gone as soon as the axes are there, without a collection of garbage."""
    axes = trace(*build("mlp"))
    assert not [other for other in gc.get_objects() if type(other) is Trace and other.graph is axes.graph]


# ------------------------------------------------------------------------------------------ operators without a rule


@torch.library.custom_op("topiarist_explain::tilted", mutates_args=())
def tilted(x: Tensor, gain: Tensor, lambda_: float = 2.0, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return x * gain * lambda_, x.sum(-1)


@tilted.register_fake
def _(x: Tensor, gain: Tensor, lambda_: float = 2.0, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[:-1])


@pytest.fixture
def model() -> Iterator[nn.Module]:
    def forward(m: Any, x: Tensor) -> Any:
        for layer in (m.a, m.c):
            x = tilted(layer(x), m.gain)[0]
        return m.b(x)

    parts = {"a": nn.Linear(5, 8), "b": nn.Linear(8, 4), "c": nn.Linear(8, 8)}
    yield Net(forward, **parts, gain=nn.Parameter(torch.rand(8))).requires_grad_(False)
    RULES.pop(torch.ops.topiarist_explain.tilted, None)


def register(text: str) -> None:
    exec(text, {"torch": torch, "topiarist": topiarist})  # noqa: S102 what topiarist has written


def test_an_unknown_operator_is_listed_once_with_a_stub(model: nn.Module) -> None:
    axes = trace(model, torch.zeros(3, 5))
    text = axes.explain()
    assert text.count("no rule for topiarist_explain.tilted, first at tests/test_explain.py:") == 1
    assert text.count("@topiarist.graph.rule(torch.ops.topiarist_explain.tilted)") == 1
    assert axes.stub("topiarist_explain.tilted") in text
    assert "def tilted(trace, out, x, gain, lambda_=2.0, mask=None):" in text
    assert "x_0, x_1 = trace[x].axes  # sizes 3, 8" in text
    assert "out0, out1 = out" in text
    with pytest.raises(InputError, match=r"nearest: topiarist_explain\.tilted"):
        axes.stub("topiarist_explain.tiltd")


def test_a_stub_pins_until_it_is_filled_in(model: nn.Module) -> None:
    before = trace(model, torch.zeros(3, 5))
    text = before.stub("topiarist_explain.tilted")
    register(text)
    axes = trace(model, torch.zeros(3, 5))
    assert axes.unknown_operators == {}
    assert axes.free == before.free == []
    assert {r.kind for r in axes["a.weight:0"].pins} == {"rule"}
    assert "is a stub" in axes.explain("a.weight:0")


def test_a_stub_filled_in_frees_the_axis_and_the_cut_is_right(model: nn.Module) -> None:
    text = trace(model, torch.zeros(3, 5)).stub("topiarist_explain.tilted")
    lines = [line for line in text.splitlines() if "is a stub" not in line and "for axis in" not in line]
    text = "\n".join(lines).replace("trace.put(out0, (out0_0, out0_1), zero=(False, False))", """
    axis = trace.unify(x_1, gain_0, "tilted")
    trace.put(out0, (x_0, axis), zero=trace[x].zero)""").replace("trace.put(out1, (out1_0,), zero=(False,))", """
    trace.put(out1, (x_0,), zero=(False,))""")  # fmt: skip
    register(text)
    axes = trace(model, torch.zeros(3, 5))
    assert len(axes.free) == 1  # gain ties what a and c return
    inputs = torch.randn(3, 5)
    plan = topiarist.plan(model, inputs, structure="channel", budget=topiarist.Budget(sparsity=0.5))
    assert topiarist.verify(model, topiarist.shrink(model, plan, inputs), plan, inputs).passed


@pytest.mark.parametrize("name", ["unknown_operator", "unfolded", "recurrent_layers", "ranked"])
def test_the_stubs_of_real_operators_can_be_pasted_and_free_nothing(name: str) -> None:
    before = trace(*build(name))
    kept = dict(RULES)
    try:
        for text in before.stubs.values():
            register(text)
        axes = trace(*build(name))
    finally:
        RULES.clear()
        RULES.update(kept)
    assert axes.unknown_operators == {}
    assert axes.free == before.free

"""Sizes tied across layers by the config they come from: the class itself, built from the new config, is the oracle."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import topiarist
from topiarist import Budget
from topiarist.errors import InputError
from topiarist.graph import blueprint, trace
from topiarist.graph.axis import AxisGraph
from topiarist.graph.sizes import Attribute, Constraint, Term, evaluate
from topiarist.graph.sizing import Sizing
from topiarist.graph.uniform import described_moves


@dataclass
class Config:
    hidden: int = 16
    inner: int = 20
    heads: int = 4
    layers: int = 2
    ratio: float = 1.5
    head_dim: int | None = None

    def __post_init__(self) -> None:
        if self.head_dim is None and self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} must be divisible by heads {self.heads}")


class Block(nn.Module):
    """Attention and an MLP; all numbers are copied when it is built."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.head_dim = config.head_dim or config.hidden // config.heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(config.hidden, 3 * self.heads * self.head_dim)
        self.proj = nn.Linear(self.heads * self.head_dim, config.hidden)
        self.up, self.down = nn.Linear(config.hidden, config.inner), nn.Linear(config.inner, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, self.heads * self.head_dim))
        return x + self.down(self.up(x).relu())


class Net(nn.Module):
    block: type[nn.Module] = Block

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Linear(5, config.hidden)
        self.blocks = nn.Sequential(*(self.block(config) for _ in range(config.layers)))
        self.head = nn.Linear(config.hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class Ratio(Net):
    """The width inside is computed through a float, which loses where it came from."""

    class block(nn.Module):  # noqa: N801
        def __init__(self, config: Config) -> None:
            super().__init__()
            inner = int(config.hidden * config.ratio)
            self.up, self.down = nn.Linear(config.hidden, inner), nn.Linear(inner, config.hidden)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.up(x).relu())


class Values(Net):
    """A table that the constructor computes from the width and that no file keeps."""

    class block(nn.Module):  # noqa: N801
        def __init__(self, config: Config) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(config.inner) / config.inner, persistent=False)
            self.up, self.down = nn.Linear(config.hidden, config.inner), nn.Linear(config.inner, config.hidden)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down((self.up(x) + self.table).relu())


INPUTS = torch.zeros(2, 4, 5)


def make(net: type[Net] = Net, **fields: int | float | None) -> Net:
    torch.manual_seed(0)
    return net(Config(**fields)).eval()


def built_from_config(small: nn.Module) -> nn.Module:
    """The oracle: what the class makes of the config, with the weights as a file would give them back."""
    fresh = type(small)(dataclasses.replace(small.config)).eval()
    fresh.load_state_dict(small.state_dict(), strict=True)
    return fresh


def check_same(small: nn.Module) -> None:
    x = torch.randn(2, 4, 5)
    assert torch.equal(small.eval()(x), built_from_config(small)(x))


# ---------------------------------------------------------------------------------------------------- what is left


@pytest.mark.parametrize("structure", ["channel", "head"])
@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("head_dim", [None, 4])
def test_the_class_built_from_the_config_is_what_is_left(structure, allocation, head_dim):
    model = make(head_dim=head_dim)
    before = copy.deepcopy(model.config)
    result = topiarist.prune(
        model, INPUTS, structure=structure, allocation=allocation, budget=Budget(sparsity=0.5), uniform="config",
        schedule="linear", steps=2,
    )  # fmt: skip
    assert result.verification.passed
    assert result.model.config != before
    assert model.config == before
    check_same(result.model)


def test_layers_get_widths_of_their_own_without_it():
    model = make()
    with torch.no_grad():
        model.blocks[1].up.weight[:15] *= 1e-3
        model.blocks[1].down.weight[:, :15] *= 1e-3
    small = topiarist.prune(model, INPUTS, structure="channel", budget=Budget(sparsity=0.2)).model
    assert small.blocks[0].up.out_features > small.blocks[1].up.out_features
    with pytest.raises(RuntimeError, match="size mismatch"):  # so the oracle can fail
        built_from_config(small)


def test_each_layer_loses_its_own_lowest():
    model = make()
    lowest = ([1, 4, 7], [0, 2, 19])
    with torch.no_grad():
        for block, indices in zip(model.blocks, lowest, strict=True):
            block.up.weight[indices] *= 1e-3
            block.up.bias[indices] *= 1e-3
            block.down.weight[:, indices] *= 1e-3
    plan = topiarist.plan(model, INPUTS, structure="channel", allocation={"*up*": 3 / 20}, uniform="config")
    assert [plan.removed[f"blocks.{i}.up.weight:0"].nonzero().flatten().tolist() for i in (0, 1)] == [*lowest]


@pytest.mark.parametrize("unit", ["params", "macs", "bytes"])
@pytest.mark.parametrize("kept", [0.7, 0.4])
def test_the_budget_is_met_by_equal_counts(unit, kept):
    model = make(inner=40)
    result = topiarist.prune(model, INPUTS, structure="channel", budget=Budget(**{unit: kept}), uniform="config")
    assert kept - 0.25 < result.plan.achieved[unit] <= kept
    num = sum(p.numel() for p in result.model.parameters()) / sum(p.numel() for p in model.parameters())
    assert result.plan.achieved["params"] == num
    check_same(result.model)


def test_a_multiple_stays_of_tied_axes_too():
    result = topiarist.prune(
        make(inner=44), INPUTS, structure="channel", allocation={"*up*": 0.6}, uniform="config", round_to=8
    )
    assert result.model.config.inner == 16
    check_same(result.model)


@settings(max_examples=12, deadline=None)
@given(
    heads=st.integers(1, 4), head_dim=st.integers(1, 4), inner=st.integers(2, 9), layers=st.integers(1, 3),
    is_explicit=st.booleans(), sparsity=st.floats(0, 0.7), structure=st.sampled_from(["channel", "head"]),
    allocation=st.sampled_from(["global", "uniform"]),
)  # fmt: skip
def test_whatever_the_sizes(heads, head_dim, inner, layers, is_explicit, sparsity, structure, allocation):
    model = make(
        hidden=heads * head_dim, heads=heads, inner=inner, layers=layers, head_dim=head_dim if is_explicit else None
    )
    try:
        plan = topiarist.plan(
            model, INPUTS, structure=structure, allocation=allocation, budget=Budget(sparsity=sparsity),
            uniform="config",
        )  # fmt: skip
    except topiarist.TopiaristError as error:  # nothing there, or too few units to meet it
        assert "may go" in str(error) or "nearest is" in str(error)  # noqa: PT017
        return
    small = topiarist.shrink(model, plan, INPUTS)
    assert {int((~plan.removed[f"blocks.{i}.up.weight:0"]).sum()) for i in range(layers)
            if f"blocks.{i}.up.weight:0" in plan.removed} <= {small.config.inner}  # fmt: skip
    check_same(small)


# ------------------------------------------------------------------------------------------- what a field describes


def moves_of(model: nn.Module) -> list[dict[str, int]]:
    return [{path.removeprefix("config->"): n for path, n in move.less.items()}
            for move in trace(model, INPUTS, "config").moves]  # fmt: skip


def test_a_head_takes_its_part_of_the_stream_where_the_constructor_divides():
    assert moves_of(make()) == [{"inner": 1}, {"hidden": 4, "heads": 1}]


def test_heads_go_alone_where_the_config_has_the_size_of_one():
    assert moves_of(make(head_dim=4)) == [{"hidden": 1}, {"inner": 1}, {"heads": 1}]


def test_a_head_stays_where_the_stream_must():
    class Open(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.blocks(self.stem(x))
            return x, self.head(x)

    model = make(Open)
    (axis, *_) = (a for a in trace(model, INPUTS, "config").axes if a.is_head)
    assert "config cannot describe it" in axis.pins[0]
    assert "with less config->hidden, " in axis.pins[0]
    assert "it is a dimension of the model's output" in axis.pins[0]
    with pytest.raises(InputError, match="no attention head that may go"):
        topiarist.plan(model, INPUTS, structure="head", budget=Budget(sparsity=0.5), uniform="config")
    assert topiarist.plan(model, INPUTS, structure="head", budget=Budget(sparsity=0.5)).num_removed


def test_a_width_computed_through_a_float_follows():
    model = make(Ratio)
    assert moves_of(model) == [{"hidden": 4}]
    result = topiarist.prune(model, INPUTS, structure="channel", budget=Budget(sparsity=0.5), uniform="config")
    assert (result.model.config.hidden, result.model.blocks[1].up.out_features) == (8, 12)
    check_same(result.model)


def test_what_the_constructor_computes_anew_stays():
    model = make(Values)
    assert moves_of(model) == [{"hidden": 4}]
    axis = trace(model, INPUTS, "config")["blocks.0.up.weight:0"]
    assert axis.pins == ("config cannot describe it: Values(config) computes blocks.0.table from it",)
    assert not trace(model, INPUTS)["blocks.0.up.weight:0"].pins


def test_without_comparing_values_the_model_would_come_back_as_another(monkeypatch):
    real = blueprint._difference
    monkeypatch.setattr(blueprint, "_difference", lambda meant, built, title: real(
        dataclasses.replace(meant, others={}), built, title))  # fmt: skip
    model = make(Values)
    plan = topiarist.plan(model, INPUTS, structure="channel", allocation={"*up*": 0.5}, uniform="config")
    with pytest.raises(AssertionError):
        check_same(topiarist.shrink(model, plan, INPUTS))


def test_a_literal_width_has_no_field():
    class Literal(Net):
        class block(nn.Module):  # noqa: N801
            def __init__(self, config: Config) -> None:
                super().__init__()
                self.up, self.down = nn.Linear(config.hidden, 24), nn.Linear(24, config.hidden)

            def forward(self, x: Tensor) -> Tensor:
                return x + self.down(self.up(x).relu())

    pins = trace(make(Literal), INPUTS, "config")["blocks.0.up.weight:0"].pins
    assert pins == ("config cannot describe it: none of its fields sets this size",)


def test_a_plan_of_unequal_counts_is_seen():
    axes = trace(make(), INPUTS, "config")
    gone = torch.zeros(20, dtype=torch.bool)
    gone[:4] = True
    equal = {f"blocks.{i}.up.weight:0": gone for i in (0, 1)}
    assert axes.undescribed(equal) is None
    assert "up.weight of shape (20, 16)" in axes.undescribed({"blocks.0.up.weight:0": gone})
    assert trace(make(), INPUTS).undescribed({"blocks.0.up.weight:0": gone}) is None  # nobody asks


def test_keeping_one_layer_keeps_all_that_share_its_field():
    plan = topiarist.plan(
        make(), INPUTS, structure="channel", budget=Budget(sparsity=0.5), uniform="config", keep=["blocks.0.up"]
    )
    assert not any("up" in name for name in plan.removed)


# ------------------------------------------------------------------------------------------------ configs of any kind


class Loose(nn.Module):
    """A config that is a dict or a namespace, under another name, with a part inside."""

    def __init__(self, options) -> None:
        super().__init__()
        self.options = options
        inner = options["mlp"]["inner"] if isinstance(options, dict) else options.mlp.inner
        self.layers = nn.Sequential(*(layer for _ in range(2) for layer in (nn.Linear(5, inner), nn.ReLU(),
                                                                          nn.Linear(inner, 5))))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("options", [{"mlp": {"inner": 12}}, SimpleNamespace(mlp=SimpleNamespace(inner=12))])
def test_any_object_that_the_class_is_built_from(options):
    before = copy.deepcopy(options)
    result = topiarist.prune(Loose(options), INPUTS, structure="channel", budget=Budget(sparsity=0.5),
                             uniform="options")  # fmt: skip
    small = result.model
    fresh = Loose(small.options)
    fresh.load_state_dict(small.state_dict())
    assert [layer.out_features for layer in small.layers if isinstance(layer, nn.Linear)] == [6, 5, 6, 5]
    assert options == before


def test_modules_go_on_sharing_one_config():
    class Reader(Block):
        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.config = config

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.down(self.up(x)[..., : self.config.inner])

    class Readers(Net):
        block = Reader

    small = topiarist.prune(
        make(Readers), INPUTS, structure="channel", budget=Budget(sparsity=0.5), uniform="config"
    ).model
    assert small.blocks[0].config is small.blocks[1].config is small.config
    check_same(small)


# --------------------------------------------------------------------------------------------- what cannot be asked


def test_a_name_that_is_no_config():
    with pytest.raises(InputError, match=r"uniform='confg' names no attribute of Net.*nearest: config"):
        topiarist.plan(make(), INPUTS, structure="channel", budget=Budget(macs=0.5), uniform="confg")


def test_a_class_that_takes_more_than_its_config():
    class More(Net):
        def __init__(self, config: Config, depth: int) -> None:
            super().__init__(config)

    with pytest.raises(InputError, match=r"built from its config alone, and More\(config\) raises TypeError"):
        trace(More(Config(), 3), INPUTS, "config")


def test_a_model_that_is_not_as_built_any_more():
    model = make()
    model.head = nn.Linear(16, 7)
    with pytest.raises(
        InputError, match=r"Net\(config\) makes head\.weight of shape \(3, 16\), it is of shape \(7, 16"
    ):
        trace(model, INPUTS, "config")
    pruned = topiarist.prune(make(), INPUTS, structure="channel", allocation={"*up*": 0.5}).model
    with pytest.raises(InputError, match="as its class builds it"):
        trace(pruned, INPUTS, "config")


def test_single_weights_have_no_sizes():
    with pytest.raises(InputError, match="try structure='channel'"):
        topiarist.prune(make(), INPUTS, budget=Budget(sparsity=0.5), uniform="config")


# ----------------------------------------------------------------------------------------------- which of the two


def test_the_result_says_what_it_loads_with():
    options = {"structure": "channel", "budget": Budget(sparsity=0.5)}
    tied = topiarist.prune(make(), INPUTS, **options, uniform="config")
    assert (tied.loads_with, tied.loads_with_reason) == (
        "load_state_dict", "Net(config) makes these shapes: sizes are tied across layers, and config says them"
    )  # fmt: skip
    assert topiarist.prune(make(), INPUTS, **options).loads_with == "topiarist.load"
    assert topiarist.prune(make(), INPUTS, budget=Budget(sparsity=0.5)).loads_with == "load_state_dict"


def test_a_class_with_from_pretrained_is_loaded_by_it():
    class Stock(Net):
        @classmethod
        def from_pretrained(cls, path: str) -> None: ...

    result = topiarist.prune(make(Stock), INPUTS, structure="channel", budget=Budget(macs=0.5), uniform="config")
    assert result.loads_with == "from_pretrained"


def test_topiarist_loads_both(tmp_path):
    for uniform in (None, "config"):
        small = topiarist.prune(make(), INPUTS, structure="channel", budget=Budget(sparsity=0.5), uniform=uniform).model
        again = topiarist.load(topiarist.save(small, tmp_path / str(uniform)), build=make).eval()
        x = torch.randn(2, 4, 5)
        assert torch.equal(again(x), small.eval()(x))
        assert again.config == small.config


# --------------------------------------------------------------------------------- against every size there is

FIELDS = {"a": 12, "b": 4, "c": 6}


@st.composite
def systems(draw):
    """Two layers whose axes are described by three fields, some by products and quotients."""
    graph, constraints, leaves = AxisGraph(), [], []

    def describe(expression: object, axis: object) -> None:
        constraints.append(Constraint(expression, axis, "here"))

    a, b, c = (Attribute(f"config->{name}") for name in FIELDS)
    said = draw(st.lists(st.sampled_from([a, b, c, Term("*", a, 2), Term("//", a, b), Term("//", c, 2),
                                          Term("+", a, c)]), min_size=1, max_size=4))  # fmt: skip
    is_product = draw(st.booleans())
    for _ in range(2):
        for expression in said:
            axis = graph.leaf(evaluate(expression, {f"config->{k}": v for k, v in FIELDS.items()}, int))
            leaves.append(axis)
            describe(expression, axis)
        if is_product:
            stream, head, dim = graph.leaf(12), graph.leaf(4), graph.leaf(3)
            leaves += [stream, head, dim]
            describe(a, stream)
            describe(b, head)
            describe(Term("*", b, Term("//", a, b)), graph.product([head, dim]))
    for axis in leaves:
        if draw(st.integers(0, 9)) == 0:
            graph.pin(axis, "it stays")
    return graph, leaves, constraints


@settings(max_examples=80, deadline=None)
@given(systems())
def test_every_multiple_of_every_move_is_described(system):
    graph, leaves, constraints = system
    fields = {f"config->{name}": value for name, value in FIELDS.items()}
    sizing = Sizing(graph, constraints, fields, leaves)
    moves, left = described_moves(sizing, fields, lambda *_: None)
    assert len([leaf for move in moves for leaf in move.step]) == len({leaf for move in moves for leaf in move.step})
    assert {leaf for move in moves for leaf in move.step}.isdisjoint(left)
    assert not any(leaf.pins for move in moves for leaf in move.step)
    for move in moves:
        for times in range(move.most + 1):
            sizes, values = move.sizes(times), move.fields(times, fields)
            assert move.times(sizes) == times
            for c in constraints:
                assert evaluate(c.expression, values, int) == graph.measure(c.axis, sizes), (move.less, times)


@settings(max_examples=80, deadline=None)
@given(systems())
def test_a_field_that_can_shrink_alone_does(system):
    """All sizes of all leaves are tried: where a part of a field leaves some, the search must have found it."""
    graph, leaves, constraints = system
    fields = {f"config->{name}": value for name, value in FIELDS.items()}
    moves, _ = described_moves(Sizing(graph, constraints, fields, leaves), fields, lambda *_: None)
    for path, value in fields.items():
        if any(path in move.less for move in moves):
            continue
        for less in (n for n in range(1, value) if value % n == 0):
            sizes = [_solutions(graph, leaves, constraints, {**fields, path: value - times * less})
                     for times in range(1, value // less)]  # fmt: skip
            shrunk = [leaf for leaf, size in (sizes[0] or {}).items() if size < leaf.size] if all(sizes) else []
            if shrunk and all(first[leaf] - then[leaf] == leaf.size - first[leaf]
                              for first, then in itertools.pairwise(sizes[:2]) for leaf in leaves):  # fmt: skip
                assert any(leaf in move.step for move in moves for leaf in shrunk), (path, less)


def _solutions(graph, leaves, constraints, values):
    """The sizes that leaves of direct constraints have to take, if no constraint is broken and none grows."""
    sizes = {}
    for c in constraints:
        if graph.find(c.axis).form == "leaf":
            size = evaluate(c.expression, values, int)
            if sizes.setdefault(c.axis, size) != size or size < 1 or size > c.axis.size:
                return None
            if c.axis.pins and size != c.axis.size:
                return None
    for c in constraints:
        parts = list(graph.leaves(c.axis))
        if len(parts) == 2:
            product = evaluate(c.expression, values, int)
            other = product / sizes.get(parts[0], parts[0].size)
            if other != int(other) or not 1 <= other <= parts[1].size or (parts[1].pins and other != parts[1].size):
                return None
            sizes[parts[1]] = int(other)
    return {leaf: sizes.get(leaf, leaf.size) for leaf in leaves}

"""Rules of operators: what each says of an axis, held against torch itself, and what happens where there is none."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch import nn

from topiarist.errors import InputError, TraceError
from topiarist.graph import rule, trace
from topiarist.graph.rules import RULES
from topiarist.graph.rules.pointwise import KEEPS_ZERO
from topiarist.testing.zoo import Net, build

aten = torch.ops.aten

# ----------------------------------------------------------------------------------------- zeros, operator by operator


def calls(name):
    """Arguments for the first overload of an operator that takes tensors, numbers and flags: (overload, filled)."""
    packet = getattr(aten, name)
    for overload in packet.overloads():
        arguments = [a for a in getattr(packet, overload)._schema.arguments if not a.has_default_value()]
        kinds = [str(a.type) for a in arguments]
        if "out" not in overload and all(kind in FILL for kind in kinds) and "Tensor" in kinds:
            yield getattr(packet, overload), [a.name for a in arguments], kinds


FILL = {"Tensor": None, "Scalar": 2, "float": 0.5, "number": 2, "Optional[float]": 0.5, "bool": True, "int": 1}
FILL["Optional[bool]"] = True
INTEGERS = ("bitwise",)


def zero_where(name, zeroed):
    """Whether the operator gives zero where the tensors at the places ``zeroed`` are zero (all, if None)."""
    for overload, names, kinds in calls(name):
        tensors = [k for k in kinds if k == "Tensor"]
        if zeroed is not None and max(zeroed, default=0) >= len(tensors):
            continue
        made, place, filled = torch.Generator().manual_seed(0), 0, {}
        for argument, kind in zip(names, kinds, strict=True):
            value = FILL[kind]
            if kind == "Tensor":
                value = torch.rand(64, generator=made) + 0.5
                value = value.int() + 1 if name.startswith(INTEGERS) else value
                value = torch.complex(value, value) if name == "_conj" else value
                value = torch.zeros_like(value) if zeroed is None or place in zeroed else value
                place += 1
            filled[argument] = value
        out = overload(**filled)
        out = out if isinstance(out, torch.Tensor) else out[0]
        return bool((out == 0).all())
    return None


@pytest.mark.parametrize("name", [n for n in KEEPS_ZERO if hasattr(aten, n)])
def test_zeros_stay_where_a_rule_says_so(name):
    keeps = KEEPS_ZERO[name]
    if keeps is False:
        return  # says nothing, and is never wrong
    places = {True: [None], "all": [None], "first": [(0,)], "any": [(0,), (1,)]}[keeps]
    assert [zero_where(name, zeroed) for zeroed in places] == [True] * len(places)


@pytest.mark.parametrize("name", ["cos", "exp", "sigmoid", "log", "reciprocal", "atan2", "softplus", "rsqrt"])
def test_operators_that_make_something_of_zero_are_not_said_to_keep_it(name):
    assert zero_where(name, None) is False or name == "atan2"
    assert KEEPS_ZERO[name] is False


# ------------------------------------------------------------------------------------------------ ties across a model


def ties(axes, name):
    return {f"{member.tensor}:{member.dim}" for member in axes[name].members}


def test_a_residual_sum_ties_all_that_meets_in_it():
    axes = trace(*build("resnet_option_b"))
    assert ties(axes, "0.weight:0") == {
        "0.weight:0", "0.bias:0", "1.weight:0", "1.bias:0", "1.running_mean:0", "1.running_var:0",
        "3.conv1.weight:1", "3.conv2.weight:0", "3.bn2.weight:0", "3.bn2.bias:0", "3.bn2.running_mean:0",
        "3.bn2.running_var:0", "4.conv1.weight:1", "4.shortcut.0.weight:1",
    }  # fmt: skip


def test_padded_channels_are_a_part_of_the_wider_axis():
    axes = trace(*build("pad_channels"))
    parts = [axis for axis in axes.axes if "second.weight:0" in ties(axes, axis.name)]
    assert [axis.size for axis in parts] == [4, 2, 4]
    assert "first.weight:0" in ties(axes, next(a.name for a in parts if "first.weight:0" in ties(axes, a.name)))


def test_heads_are_found_by_what_is_done_with_them():
    for name in ("vit", "separate_qkv", "einsum_attention", "attention_with_bias_table"):
        axes = trace(*build(name))
        heads = [axis for axis in axes.axes if axis.is_head and not axis.pins]
        assert heads, name
        assert {axis.size for axis in heads} == {3}


def test_tied_tensors_are_one():
    axes = trace(*build("tied_embedding"))
    assert axes.tensors["output.weight"].tied_to == "table.weight"
    assert axes.num_params() == sum(p.numel() for p in build("tied_embedding")[0].parameters())


def test_what_is_never_reached_is_pinned():
    model = Net(lambda m, x: m.a(x), a=nn.Linear(5, 4), unused=nn.Linear(7, 8))
    axes = trace(model, torch.zeros(2, 5))
    assert all("is not reached" in axes[f"unused.weight:{dim}"].pins[0] for dim in (0, 1))


def test_weights_are_what_multiplies_activations():
    assert trace(*build("vit")).weights() == [
        "patch_embed.weight",
        *(f"blocks.{i}.{n}.weight" for i in (0, 1) for n in ("attn.qkv", "attn.proj", "fc1", "fc2")),
        "head.weight",
    ]


def test_multiply_accumulates_by_weight_are_those_of_the_formulas():
    by_tensor = trace(*build("lenet")).macs_by_tensor()
    assert by_tensor == {"0.weight": 2 * 4 * 9 * 80, "3.weight": 2 * 6 * 4 * 9 * 6, "6.weight": 720, "8.weight": 100}


def test_shares_add_up_to_what_hangs_on_each_axis():
    axes = trace(*build("mlp"))
    assert axes.share(axes["0.weight:0"]) == pytest.approx((60 + 10 + 80) / axes.num_params())


def summary(model, inputs):
    return trace(model, inputs).summary()


@pytest.mark.parametrize("name", ["vit", "resnet_option_a", "glu_by_chunk"])
def test_a_model_without_data_is_traced_alike(name):
    model, inputs = build(name)
    expected = summary(model, inputs)
    assert summary(model.to("meta"), torch.empty_like(inputs, device="meta")) == expected


def test_half_precision_is_traced_alike():
    model, inputs = build("vgg_bn")
    expected = summary(model, inputs)
    assert summary(model.bfloat16(), inputs.bfloat16()) == expected


def test_the_trace_is_the_same_twice():
    model, inputs = build("shared_config")
    assert summary(model, inputs) == summary(model, inputs)


def test_gradients_and_inference_mode_of_the_caller_do_not_matter():
    model, inputs = build("lenet")
    expected = summary(model, inputs)
    with torch.inference_mode():
        assert summary(model, inputs) == expected


def test_a_branch_on_data_is_followed_on_real_tensors_and_costs_once():
    model, inputs = build("data_dependent")
    axes = trace(model, inputs)
    assert axes.free == ["first.weight:0"]
    assert axes.num_macs() == 3 * (6 * 10 + 10 * 4)


# ----------------------------------------------------------------------- nobody outside keeps a tensor of the trace


class Table:
    kept = None


TABLES = {}


@functools.lru_cache
def table_by_function(size, device):
    return torch.arange(size, device=device).float()


@functools.cache
def table_in_a_tuple(size, device):
    return torch.arange(size, device=device).float(), size


def table_in_a_dict(size, device):
    if size not in TABLES:
        TABLES[size] = torch.arange(size, device=device).float()
    return TABLES[size]


def table_in_a_class(size, device):
    if Table.kept is None:
        Table.kept = torch.arange(size, device=device).float()
    return Table.kept


def tabled(make, *, on_real):
    def forward(m, x):
        hidden = m.a(x) * make(x.shape[0], x.device)[:, None]
        return m.b(hidden) * (float(x.new_ones(1).sum()) if on_real else 1.0)

    return Net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 4)), torch.randn(3, 5)


@pytest.fixture
def _empty_tables():
    yield
    Table.kept = None
    TABLES.clear()
    table_by_function.cache_clear()
    table_in_a_tuple.cache_clear()


@pytest.mark.usefixtures("_empty_tables")
@pytest.mark.parametrize("on_real", [False, True])
@pytest.mark.parametrize("make", [table_by_function, lambda *a: table_in_a_tuple(*a)[0], table_in_a_dict])
def test_caches_that_a_trace_fills_are_emptied(make, on_real):
    model, inputs = tabled(make, on_real=on_real)
    assert trace(model, inputs).free == ["a.weight:0"]
    found = model(inputs)
    assert type(found) is torch.Tensor
    assert found.device.type == "cpu"
    assert torch.equal(found, model.b(model.a(inputs) * torch.arange(3.0)[:, None]))


@pytest.mark.usefixtures("_empty_tables")
def test_caches_that_are_full_stay():
    model, inputs = tabled(table_in_a_dict, on_real=False)
    model(inputs)
    kept = TABLES[3]
    trace(model, inputs)
    assert TABLES[3] is kept


@pytest.mark.usefixtures("_empty_tables")
def test_an_attribute_that_a_trace_fills_is_emptied_with_a_warning():
    model, inputs = tabled(table_in_a_class, on_real=False)
    with pytest.warns(UserWarning, match=r"Table\.kept kept a tensor of the trace.*call the model once"):
        trace(model, inputs)
    assert model(inputs).device.type == "cpu"


def test_hooks_that_record_are_left_without_tensors_of_the_trace():
    model, inputs = build("mlp")
    seen = []
    model[0].register_forward_hook(lambda module, args, out: seen.append(out))
    trace(model, inputs)
    assert seen == []
    model(inputs)
    assert len(seen) == 1


def test_sizes_that_somebody_kept_say_nothing_any_more():
    kept = []

    def forward(m, x):
        kept.append(m.a.weight.shape[0])
        return m.b(m.a(x))

    axes = trace(Net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 4)), torch.zeros(2, 5))
    observer = kept[0].observer
    before = len(observer.constraints)
    assert kept[0] == 8
    assert float(kept[0]) == 8.0
    assert len(observer.constraints) == before
    assert axes.free == ["a.weight:0"]


# -------------------------------------------------------------------------------------------- no rule, and a new rule


@torch.library.custom_op("topiarist_tests::mirrored", mutates_args=())
def mirrored(x: torch.Tensor) -> torch.Tensor:
    return -x


@mirrored.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@pytest.fixture
def mirror():
    model = Net(lambda m, x: m.b(mirrored(m.a(x))), a=nn.Linear(5, 8), b=nn.Linear(8, 4))
    yield model.requires_grad_(False), torch.zeros(3, 5)
    RULES.pop(torch.ops.topiarist_tests.mirrored, None)


def test_an_operator_without_a_rule_pins_and_is_listed_with_its_line(mirror):
    axes = trace(*mirror)
    assert axes.free == []
    (where,) = axes.unknown_operators.values()
    assert list(axes.unknown_operators) == ["topiarist_tests.mirrored"]
    assert where.startswith("tests/test_graph_rules.py:")
    assert "no rule for the operator topiarist_tests.mirrored" in axes.explain("a.weight:0")
    assert "@topiarist.graph.rule" in axes.explain("a.weight:0")
    assert "topiarist_tests.mirrored, first at tests/test_graph_rules.py" in axes.summary()


def test_a_rule_from_outside_frees_the_axis(mirror):
    @rule(torch.ops.topiarist_tests.mirrored)
    def _mirrored(trace, out, x):
        trace.put(out, trace[x].axes, trace[x].zero)

    axes = trace(*mirror)
    assert axes.free == ["a.weight:0"]
    assert axes.unknown_operators == {}


@pytest.mark.parametrize("wrong", ["raises", "sizes", "arguments"])
def test_a_rule_that_does_not_hold_pins_and_is_named(mirror, wrong):
    if wrong == "arguments":
        rule(torch.ops.topiarist_tests.mirrored)(lambda trace, out: None)
    else:

        @rule(torch.ops.topiarist_tests.mirrored)
        def _mirrored(trace, out, x):
            if wrong == "raises":
                raise KeyError("missing")
            trace.put(out, trace[x].axes[::-1])

    axes = trace(*mirror)
    assert axes.free == []
    assert "in its rule" in next(iter(axes.unknown_operators))
    assert "the rule of the operator topiarist_tests.mirrored" in axes.explain("a.weight:0")
    assert "does not hold, at tests/test_graph_rules.py" in axes.explain("a.weight:0")


def test_two_rules_for_one_operator_are_refused():
    with pytest.raises(ValueError, match="has a rule already"):
        rule(aten.mm)(lambda trace, out, a, b: None)


# ------------------------------------------------------------------------------------------------- asking, and errors


@pytest.mark.parametrize("name", ["blocks.0.attn.qkv.weight", "blocks.0.attn", "head.weight:1"])
def test_explain_takes_axes_tensors_and_modules(name):
    assert "lives in" in trace(*build("vit")).explain(name)


@pytest.mark.parametrize("ask", [lambda axes: axes.explain("blocks.0.atn"), lambda axes: axes["blocks.0.atn"]])
def test_names_that_match_nothing_name_the_nearest(ask):
    with pytest.raises(InputError, match=r"nearest: .*blocks\.0\.attn"):
        ask(trace(*build("vit")))


def test_what_is_kept_is_what_modules_return():
    axes = trace(*build("mlp"))
    assert axes.kept_by(["0"]) == {axes["0.weight:0"].leaf} | {leaf for leaf in axes.kept_by(["0"]) if leaf.pins}
    with pytest.raises(InputError, match="matches no module"):
        axes.kept_by(["nothing.*"])


def test_a_model_that_fails_in_training_mode_only_is_still_traced():
    def forward(m, x):
        if m.training:
            raise RuntimeError("no training here")
        return m.b(m.a(x))

    axes = trace(Net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 4)), torch.zeros(2, 5))
    assert axes.free == ["a.weight:0"]
    assert "no training here" in str(axes.training_error)


def test_what_a_training_run_reached_before_it_failed_is_pinned():
    """The auxiliary head reads the hidden features, and what reads the auxiliary head is never seen."""

    def forward(m, x):
        hidden = m.a(x)
        if m.training:
            m.tail(m.aux(hidden).view(3, 1000))
        return m.b(hidden)

    parts = {"a": nn.Linear(5, 8), "b": nn.Linear(8, 4), "aux": nn.Linear(8, 6), "tail": nn.Linear(6, 4)}
    axes = trace(Net(forward, **parts), torch.zeros(3, 5))
    assert axes.free == []
    assert "used in training mode, which does not run" in axes.explain("aux.weight:0")


def test_a_model_that_does_not_run_is_an_error_with_shapes_and_devices():
    with pytest.raises(TraceError, match=r"shapes \(3, 7\), devices cpu.*check that model") as error:
        trace(nn.Linear(5, 4), torch.zeros(3, 7))
    assert isinstance(error.value.__cause__, RuntimeError)


def test_only_modules_are_traced():
    with pytest.raises(InputError, match=r"a model is a torch\.nn\.Module, got function"):
        trace(lambda x: x, torch.zeros(1))


def test_no_warning_is_raised():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(*build("transformer_encoder"))

"""Masks hold through any optimizer, cost nothing in the forward pass, and come off without a trace."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torch._dynamo
import torch._dynamo.testing
from torch import nn
from torch.optim import optimizer as torch_optimizer

from topiarist.errors import InputError
from topiarist.mask import active_plan, attach, mask, reapply, unmask
from topiarist.mask.attach import masked
from topiarist.plan import Plan
from topiarist.testing.invariants import half_of_every_axis, nothing_left_behind
from topiarist.testing.zoo import ZOO, build

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw, one by one": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
}
PLANS = ["weight", "channel"]


@pytest.fixture(autouse=True)
def _nothing_stays_masked():
    yield
    for model in [nn.Identity(), *attach._attached]:  # unmasking anything at all drops an idle hook
        unmask(model)
    assert not attach._handles


def make_plan(model, kind, name="mlp"):
    if kind == "channel":
        return half_of_every_axis(*build(name)).plan
    generator = torch.Generator().manual_seed(1)
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    return Plan("weight", {n: torch.rand(p.numel(), generator=generator) < 0.5 for n, p in weights.items()})


def train(model, inputs, optimizer, steps):
    def loss():
        optimizer.zero_grad()
        out = model(inputs)
        value = ((out - 1) ** 2).sum()
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(loss)


def removed_entries(model, plan):
    return {name: dict(model.named_parameters())[name].detach()[gone] for name, gone in plan.masks(model).items()}


def states(optimizer, plan, model):
    for name, gone in plan.masks(model).items():
        for key, value in optimizer.state.get(dict(model.named_parameters())[name], {}).items():
            if isinstance(value, torch.Tensor) and value.shape == gone.shape:
                yield key, value[gone]


# ------------------------------------------------------------------------------------------------------------ holding


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_masked_stays_zero(name, kind):
    model, inputs = build("mlp")
    plan = make_plan(model, kind)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, inputs, optimizer, 3)  # momentum that would carry the entries on
    before = copy.deepcopy(model.state_dict())
    mask(model, plan)
    for _ in range(20):
        train(model, inputs, optimizer, 1)
        assert all(bool((values == 0).all()) for values in removed_entries(model, plan).values())
        assert all(bool((values == 0).all()) for _, values in states(optimizer, plan, model))
    for key, value in model.state_dict().items():
        stay = ~plan.masks(model).get(key, torch.zeros_like(value, dtype=torch.bool))
        assert not torch.equal(value[stay], before[key][stay]), f"{key} no longer learns"


@pytest.mark.parametrize("name", ["sgd with momentum", "adam", "adamw"])
def test_without_the_hook_momentum_revives_them(name):
    """The control: the same run, with the gradient itself masked, but nobody looking after the optimizer."""
    model, inputs = build("mlp")
    plan = make_plan(model, "weight")
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, inputs, optimizer, 3)
    mask(model, plan)
    attach._handles.pop().remove()
    for parameter_name, gone in plan.masks(model).items():
        dict(model.named_parameters())[parameter_name].register_hook(lambda grad, gone=gone: grad.masked_fill(gone, 0))
    train(model, inputs, optimizer, 2)
    assert any(bool((values != 0).any()) for values in removed_entries(model, plan).values())


def test_an_optimizer_made_after_the_mask_is_followed_too():
    model, inputs = build("mlp")
    plan = make_plan(model, "weight")
    mask(model, plan)
    train(model, inputs, OPTIMIZERS["adamw"](model.parameters()), 3)
    assert all(bool((values == 0).all()) for values in removed_entries(model, plan).values())


def test_several_models_and_optimizers_do_not_disturb_each_other():
    (one, inputs), (two, _), (free, _) = build("mlp"), build("mlp", seed=1), build("mlp", seed=2)
    plans = make_plan(one, "weight"), make_plan(two, "channel")
    mask(one, plans[0])
    mask(two, plans[1])
    optimizers = [OPTIMIZERS["adam"](model.parameters()) for model in (one, two, free)]
    for _ in range(3):
        for model, optimizer in zip((one, two, free), optimizers, strict=True):
            train(model, inputs, optimizer, 1)
    for model, plan in zip((one, two), plans, strict=True):
        assert all(bool((values == 0).all()) for values in removed_entries(model, plan).values())
    assert all(bool((values != 0).all()) for values in removed_entries(free, plans[0]).values())


def test_half_precision_and_frozen_parameters():
    model, inputs = build("mlp")
    plan = make_plan(model, "weight")
    model.to(torch.bfloat16)[0].requires_grad_(False)
    mask(model, plan)
    train(
        model, inputs.bfloat16(), OPTIMIZERS["sgd with momentum"](p for p in model.parameters() if p.requires_grad), 3
    )
    assert all(bool((values == 0).all()) for values in removed_entries(model, plan).values())


@pytest.mark.parametrize("replaced", ["assigned", "moved"])
def test_a_mask_follows_parameters_that_are_replaced(replaced):
    model, inputs = build("mlp")
    plan = make_plan(model, "weight")
    mask(model, plan)
    if replaced == "assigned":
        model.load_state_dict({k: torch.randn_like(v) for k, v in model.state_dict().items()}, assign=True)
    else:
        model.to(torch.float64)
        inputs = inputs.double()
    train(model, inputs, OPTIMIZERS["adamw"](model.parameters()), 2)
    assert all(bool((values == 0).all()) for values in removed_entries(model, plan).values())


def test_reapplying_after_weights_were_loaded():
    model, _ = build("mlp")
    plan = make_plan(model, "weight")
    state = copy.deepcopy(model.state_dict())
    mask(model, plan)
    model.load_state_dict(state)
    assert any(bool((values != 0).any()) for values in removed_entries(model, plan).values())
    reapply(model)
    assert all(bool((values == 0).all()) for values in removed_entries(model, plan).values())
    reapply(build("mlp")[0])  # nothing is masked, nothing is done


# ------------------------------------------------------------------------------------------------- nothing in forward


@pytest.mark.parametrize("kind", PLANS)
def test_keys_code_and_hooks_of_the_model_stay(kind):
    model, inputs = build("mlp")
    keys, attributes = list(model.state_dict()), {n: sorted(vars(m)) for n, m in model.named_modules()}
    identities = [id(p) for p in model.parameters()]
    mask(model, make_plan(model, kind))
    train(model, inputs, OPTIMIZERS["adam"](model.parameters()), 1)
    assert list(model.state_dict()) == keys
    assert {n: sorted(vars(m)) for n, m in model.named_modules()} == attributes
    assert [id(p) for p in model.parameters()] == identities
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not [name for name, value in vars(module).items() if name.endswith("_hooks") and value]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_stays_compiled(backend):
    model, inputs = build("mlp")
    plan = make_plan(model, "weight")
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter)
    optimizer = OPTIMIZERS["sgd with momentum"](model.parameters())
    train(compiled, inputs, optimizer, 2)
    frames = counter.frame_count
    assert frames > 0
    mask(model, plan)
    train(compiled, inputs, optimizer, 3)
    assert all(bool((values == 0).all()) for values in removed_entries(model, plan).values())
    unmask(model)
    train(compiled, inputs, optimizer, 1)
    assert counter.frame_count == frames
    torch._dynamo.reset()


def test_a_masked_model_trains_like_one_whose_gradient_is_projected():
    """SGD without momentum: w ← (w − lr · g) ⊙ M, in a loop of one's own."""
    model, inputs = build("mlp")
    plan = make_plan(model, "weight")
    expected = copy.deepcopy(model)
    mask(model, plan)
    train(model, inputs, OPTIMIZERS["sgd"](model.parameters()), 5)
    masks = plan.masks(expected)
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            parameter.mul_(~masks.get(name, torch.zeros_like(parameter, dtype=torch.bool)))
    for _ in range(5):
        gradients = torch.autograd.grad(((expected(inputs) - 1) ** 2).sum(), list(expected.parameters()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(expected.named_parameters(), gradients, strict=True):
                stay = ~masks.get(name, torch.zeros_like(parameter, dtype=torch.bool))
                parameter.copy_((parameter - 0.05 * gradient) * stay)
    for (_, found), (_, wanted) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


# --------------------------------------------------------------------------------------------------------- coming off


@pytest.mark.parametrize("name", ["mlp", "vit", "tied_embedding", "buffers_with_channels", "weight_norm"])
def test_off_again_without_a_trace(name):
    model, inputs = build(name)
    plan = make_plan(model, "channel", name)
    with nothing_left_behind(model, inputs):
        mask(model, plan)
        assert active_plan(model) == plan
        unmask(model)
        assert active_plan(model) is None


def test_every_bit_comes_back():
    layer = nn.Linear(3, 2, bias=False)
    special = torch.tensor([[-0.0, float("nan"), float("inf")], [1e-45, -float("inf"), 0.1]])
    with torch.no_grad():
        layer.weight.copy_(special)
    mask(layer, Plan("weight", {"weight": torch.ones(6, dtype=torch.bool)}))
    assert torch.equal(layer.weight.detach().view(torch.int32), torch.zeros(2, 3, dtype=torch.int32))
    unmask(layer)
    assert torch.equal(layer.weight.detach().view(torch.int32), special.view(torch.int32))


def test_survivors_keep_what_they_learnt():
    model, inputs = build("mlp")
    plan = make_plan(model, "weight")
    before = copy.deepcopy(model.state_dict())
    mask(model, plan)
    train(model, inputs, OPTIMIZERS["adam"](model.parameters()), 2)
    learnt = copy.deepcopy(model.state_dict())
    unmask(model)
    for name, gone in plan.masks(model).items():
        assert torch.equal(model.state_dict()[name][gone], before[name][gone])
        assert torch.equal(model.state_dict()[name][~gone], learnt[name][~gone])


def test_off_without_restoring_leaves_zeros_that_may_move():
    model, inputs = build("mlp")
    plan = make_plan(model, "weight")
    mask(model, plan)
    unmask(model, restore=False)
    assert all(bool((values == 0).all()) for values in removed_entries(model, plan).values())
    train(model, inputs, OPTIMIZERS["adam"](model.parameters()), 1)
    assert any(bool((values != 0).any()) for values in removed_entries(model, plan).values())


def test_a_second_mask_takes_the_place_of_the_first():
    model, _ = build("mlp")
    before = copy.deepcopy(model.state_dict())
    first = Plan("weight", {"0.weight": torch.arange(60) < 30})
    second = Plan("weight", {"0.weight": torch.arange(60) >= 30})
    mask(model, first)
    mask(model, second)
    weight = model[0].weight.detach().flatten()
    assert torch.equal(weight[:30], before["0.weight"].flatten()[:30])
    assert bool((weight[30:] == 0).all())
    mask(model, Plan("weight", {"0.weight": torch.ones(60, dtype=torch.bool)}))
    unmask(model)
    assert torch.equal(model[0].weight, before["0.weight"])


def test_a_plan_that_does_not_fit_changes_nothing():
    model, _ = build("mlp")
    good = Plan("weight", {"0.weight": torch.arange(60) < 30})
    mask(model, good)
    before = copy.deepcopy(model.state_dict())
    bad = Plan("weight", {"2.weight": torch.ones(80, dtype=torch.bool), "0.weight": torch.ones(61, dtype=torch.bool)})
    with pytest.raises(InputError, match=r"0\.weight has 60 entries"):
        mask(model, bad)
    assert active_plan(model) == good
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_unmasking_what_is_not_masked_does_nothing():
    model, inputs = build("mlp")
    with nothing_left_behind(model, inputs):
        assert unmask(model) is model


def test_a_mask_for_a_while_comes_off_after_an_error():
    model, inputs = build("mlp")
    plan = make_plan(model, "weight")
    with nothing_left_behind(model, inputs):
        with masked(model, plan) as same:
            assert same is model
            assert all(bool((values == 0).all()) for values in removed_entries(model, plan).values())
        with pytest.raises(KeyError), masked(model, plan):
            raise KeyError


# ------------------------------------------------------------------------------------------------------------- memory


def test_a_copy_holds_the_zeros_and_is_not_masked():
    model, inputs = build("mlp")
    plan = make_plan(model, "weight")
    mask(model, plan)
    twin = copy.deepcopy(model)
    assert active_plan(twin) is None
    assert all(bool((values == 0).all()) for values in removed_entries(twin, plan).values())
    train(twin, inputs, OPTIMIZERS["adam"](twin.parameters()), 1)
    assert any(bool((values != 0).any()) for values in removed_entries(twin, plan).values())
    assert all(bool((values == 0).all()) for values in removed_entries(model, plan).values())


def test_there_is_one_hook_while_something_is_masked_and_none_after():
    count = len(torch_optimizer._global_optimizer_post_hooks)
    (one, _), (two, _) = build("mlp"), build("mlp")
    mask(one, make_plan(one, "weight"))
    mask(two, make_plan(two, "weight"))
    assert len(torch_optimizer._global_optimizer_post_hooks) == count + 1
    unmask(one)
    assert len(torch_optimizer._global_optimizer_post_hooks) == count + 1
    unmask(two)
    assert len(torch_optimizer._global_optimizer_post_hooks) == count


@pytest.mark.parametrize("name", ["mlp", "einsum_attention"])  # parameters of submodules, and of the model itself
def test_a_masked_model_can_be_forgotten(name):
    model, _ = build(name)
    mask(model, make_plan(model, "channel", name))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    other, inputs = build("mlp")
    train(other, inputs, OPTIMIZERS["sgd"](other.parameters()), 1)  # the next step of anybody takes the hook away
    assert not attach._handles


@pytest.mark.parametrize("name", ZOO)
def test_every_net_can_be_masked_and_trained(name):
    """Zeros stay zeros through a step of AdamW in training mode, wherever axes live."""
    model, inputs = build(name)
    cut = half_of_every_axis(model, inputs)
    mask(model, cut.plan)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(bool((values == 0).all()) for values in removed_entries_of_all(model, cut.plan))


def removed_entries_of_all(model, plan):
    named = dict(model.named_parameters(remove_duplicate=False))
    return [named[name].detach()[gone] for name, gone in plan.masks(model).items()]


def test_the_hook_goes_with_the_last_masked_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "_attached", weakref.WeakKeyDictionary())
    monkeypatch.setattr(attach, "_handles", [])
    first, second = nn.Linear(2, 1), nn.Linear(2, 1)
    for model in (first, second):
        for _ in range(3):
            attach.mask(model, Plan("weight", {"weight": torch.tensor([True, False])}))
    del model, first
    gc.collect()
    assert len(attach._handles) == 1
    del second
    gc.collect()
    assert attach._handles == []

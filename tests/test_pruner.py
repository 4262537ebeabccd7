"""Pruning while training: the masks of a loop of one's own, resuming, coming back, and nothing in the forward pass."""

from __future__ import annotations

import copy
import itertools
import json

import numpy as np
import pytest
import torch
import torch._dynamo
import torch._dynamo.testing
from torch import nn

import topiarist
from topiarist import Budget, Pruner
from topiarist.errors import FormatError, InputError
from topiarist.mask import active_plan, attach, mask, unmask
from topiarist.mask.soft import zero_once
from topiarist.schedule import DenseSparseDense, Window, cubic, linear, one_shot

X = torch.randn(16, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
Y = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.fixture(autouse=True)
def _nothing_stays_masked():
    yield
    for model in [nn.Identity(), *attach._attached]:
        unmask(model)
    assert not attach._handles


def make_mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def make_conv():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3)
    ).double(), torch.randn(8, 2, 6, 6, dtype=torch.float64)  # fmt: skip


def train(model, optimizer, pruner, num_steps, seen=None, inputs=X):
    for _ in range(num_steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), Y[: len(inputs)]).backward()
        optimizer.step()
        plan = pruner.step()
        if seen is not None:
            seen.append((plan, [p.detach().clone() for p in model.parameters()]))


def lowest(values: np.ndarray, k: int) -> np.ndarray:
    gone = np.zeros(values.size, dtype=bool)
    gone[np.argsort(values, kind="stable")[:k]] = True
    return gone


# ------------------------------------------------------------------------------------------------------------ masking


def test_masks_follow_the_published_schedule_on_the_weights_of_the_moment():
    """The whole training in a loop of one's own: SGD, every 2 steps the ⌊s·n + ½⌋ smallest |w| go for good (AGP)."""
    model, twin = make_mlp(), make_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    pruner = Pruner(model, X, budget=Budget(sparsity=0.8), schedule="cubic", begin=3, end=11, every=2)
    seen: list = []
    train(model, optimizer, pruner, 15, seen)

    weights = [twin[0].weight, twin[2].weight]
    gone = np.zeros(sum(w.numel() for w in weights), dtype=bool)
    for t in range(1, 16):
        grads = torch.autograd.grad(nn.functional.mse_loss(twin(X), Y), list(twin.parameters()))
        with torch.no_grad():
            for p, g in zip(twin.parameters(), grads, strict=True):
                p -= 0.2 * g
            flat = np.concatenate([w.detach().numpy().ravel() for w in weights])
            flat[gone] = 0
            moved = t in (3, 5, 7, 9, 11)
            if moved:
                sparsity = 0.8 * (1 - (1 - (t - 3) / 8) ** 3)
                gone = lowest(np.where(gone, -1, np.abs(flat)), int(np.floor(sparsity * gone.size + 0.5)))
                flat[gone] = 0
            weights[0].copy_(torch.from_numpy(flat[:48]).view(8, 6))
            weights[1].copy_(torch.from_numpy(flat[48:]).view(3, 8))
        plan, found = seen[t - 1]
        assert (plan is not None) == moved
        for mine, theirs in zip(found, twin.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs.detach(), rtol=1e-13, atol=1e-15)
    assert pruner.plan.num_removed == int(np.floor(0.8 * 72 + 0.5))


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    lambda p: torch.optim.AdamW(p, lr=0.01),
    lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
])  # fmt: skip
def test_masks_hold_through_any_optimizer(make):
    model = make_mlp()
    optimizer = make(model.parameters())
    pruner = Pruner(model, X, budget=Budget(sparsity=0.75), schedule="linear", end=4)
    for t in range(1, 12):
        train(model, optimizer, pruner, 1)
        zeros = sum(int((model[i].weight == 0).sum()) for i in (0, 2))
        assert zeros == pruner.plan.num_removed == int(np.floor(0.75 * 72 * min(t, 4) / 4 + 0.5))


def test_channels_go_during_training_and_shrink_after():
    model, inputs = make_conv()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = Pruner(model, inputs, structure="channel", budget=Budget(macs=0.5), schedule="linear", end=6, every=3)
    train(model, optimizer, pruner, 8, inputs=inputs)
    small = topiarist.shrink(model, pruner.plan, inputs)
    assert small[0].out_channels == 3
    model.eval()
    torch.testing.assert_close(small.eval()(inputs), model(inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("allow_regrow", [True, False])
def test_blocks_go_during_training(allow_regrow):
    model = make_mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    pruner = Pruner(
        model,
        X,
        structure="block:2x2",
        budget=Budget(sparsity=0.5),
        schedule="linear",
        end=4,
        allow_regrow=allow_regrow,
    )
    for t in range(1, 7):
        train(model, optimizer, pruner, 1)
        gone = pruner.plan.masks(model)
        assert pruner.plan.num_removed == int(np.floor(0.5 * pruner.plan.num_units * min(t, 4) / 4 + 0.5))
        assert all(bool((dict(model.named_parameters())[n][mine] == 0).all()) for n, mine in gone.items())
    assert active_plan(model) == pruner.plan


def test_a_start_above_zero_is_there_from_the_first_step():
    model = make_mlp()
    pruner = Pruner(model, X, budget=Budget(sparsity=0.75), schedule=Window(linear, initial=0.25), end=2)
    assert pruner.plan.num_removed == 18
    found = [pruner.step().num_removed for _ in range(2)]
    assert found == [36, 54]
    assert pruner.step() is None


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_stays_compiled(backend):
    model = make_mlp()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pruner = Pruner(compiled, X, budget=Budget(sparsity=0.5), end=4)
    compiled(X).sum().backward()
    frames = counter.frame_count
    assert frames > 0
    train(compiled, optimizer, pruner, 6)
    assert counter.frame_count == frames
    assert sum(int((model[i].weight == 0).sum()) for i in (0, 2)) == 36
    torch._dynamo.reset()


def test_random_states_stay():
    model = make_mlp()
    before = torch.get_rng_state()
    pruner = Pruner(model, X, budget=Budget(sparsity=0.5), end=1, saliency="random")
    pruner.step()
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("options", [{}, {"allow_regrow": True, "schedule": "one-shot"}])
@pytest.mark.parametrize("stop", [1, 5, 9])
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(options, stop):
    def begin():
        model = make_mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        return (
            model,
            optimizer,
            Pruner(model, X, budget=Budget(sparsity=0.7), begin=2, end=8, every=3, **options),
        )

    model, optimizer, pruner = begin()
    train(model, optimizer, pruner, 12)
    whole = copy.deepcopy(model.state_dict())

    model, optimizer, pruner = begin()
    train(model, optimizer, pruner, stop)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict())), json.dumps(pruner.state_dict())
    for rest in (True, False):  # into a fresh process, and back into the one that has gone on
        if rest:
            model, optimizer, pruner = begin()
        model.load_state_dict(saved[0][0])
        optimizer.load_state_dict(copy.deepcopy(saved[0][1]))
        pruner.load_state_dict(json.loads(saved[1]))
        train(model, optimizer, pruner, 12 - stop)
        for name, value in model.state_dict().items():
            assert torch.equal(value, whole[name]), name


def test_without_the_pruners_state_the_resumed_training_differs():
    """The control: the same, but the new pruner begins again."""
    model = make_mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    train(model, optimizer, pruner := Pruner(model, X, budget=Budget(sparsity=0.7), end=8, every=3), 7)
    saved = copy.deepcopy(model.state_dict())
    train(model, optimizer, pruner, 3)
    unmask(model, restore=False)
    model.load_state_dict(saved)
    train(model, optimizer, Pruner(model, X, budget=Budget(sparsity=0.7), end=8, every=3), 1)
    assert active_plan(model) is None


@pytest.mark.parametrize("state", [{}, {"step": -1, "plan": None}, {"step": 1, "plan": 3}, {"step": 1, "plan": "{"}])
def test_a_damaged_state_is_refused(state):
    pruner = Pruner(make_mlp(), X, budget=Budget(sparsity=0.5), end=2)
    with pytest.raises(FormatError):
        pruner.load_state_dict(state)


# --------------------------------------------------------------------------------------------------------- coming back


def test_soft_pruning_zeroes_once_and_chooses_afresh():
    """A loop of one's own: every 2 steps the smallest |w| of the moment are zeroed, and all learn on."""
    model, twin = make_mlp(), make_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.5)
    pruner = Pruner(
        model, X, budget=Budget(sparsity=0.5), schedule=one_shot, begin=0, end=6, every=2, allow_regrow=True
    )
    seen: list = []
    train(model, optimizer, pruner, 6, seen)
    plans = [plan for plan, _ in seen if plan is not None]
    assert [plan.num_removed for plan in plans] == [36, 36, 36]
    assert plans[0] != plans[-1], "nothing came back"
    for t in range(1, 7):
        grads = torch.autograd.grad(nn.functional.mse_loss(twin(X), Y), list(twin.parameters()))
        with torch.no_grad():
            for p, g in zip(twin.parameters(), grads, strict=True):
                p -= 1.5 * g
            if t % 2 == 0:
                weights = [twin[0].weight, twin[2].weight]
                flat = np.concatenate([w.detach().numpy().ravel() for w in weights])
                flat[lowest(np.abs(flat), 36)] = 0
                weights[0].copy_(torch.from_numpy(flat[:48]).view(8, 6))
                weights[1].copy_(torch.from_numpy(flat[48:]).view(3, 8))
        for mine, theirs in zip(seen[t - 1][1], twin.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs.detach(), rtol=1e-13, atol=1e-15)
    assert active_plan(model) == pruner.plan, "the last one holds"
    train(model, optimizer, pruner, 3)
    assert sum(int((model[i].weight == 0).sum()) for i in (0, 2)) == 36


def test_without_regrowth_what_is_gone_stays_gone():
    model = make_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    pruner = Pruner(model, X, budget=Budget(sparsity=0.5), schedule="linear", end=8, every=2)
    seen: list = []
    train(model, optimizer, pruner, 8, seen)
    plans = [plan for plan, _ in seen if plan is not None]
    for before, after in itertools.pairwise(plans):
        assert all(bool((after.removed[n] | ~gone).all()) for n, gone in before.removed.items())


@pytest.mark.parametrize("zero", ["once", "everywhere"])
def test_gradients_reach_what_soft_pruning_zeroes(zero):
    """And the sabotage: with norms and readers at zero as well, nothing ever comes back."""
    model, inputs = make_conv()
    axes = topiarist.trace(model, inputs)
    plan = topiarist.plan(model, inputs, structure="channel", budget=Budget(sparsity=0.5))
    if zero == "once":
        zero_once(model, plan, axes)
    else:
        mask(model, plan)
    gone = next(iter(plan.removed.values()))
    assert bool((model[0].weight[gone] == 0).all())
    assert bool((model[1].weight[gone] == 0).all()) == (zero == "everywhere")
    nn.functional.mse_loss(model(inputs), Y[:8]).backward()
    assert bool((model[0].weight.grad[gone] != 0).any()) == (zero == "once")


def test_soft_channels_come_back_and_are_held_in_the_end():
    model, inputs = make_conv()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    pruner = Pruner(
        model,
        inputs,
        structure="channel",
        budget=Budget(sparsity=0.5),
        schedule="one-shot",
        end=20,
        every=5,
        allow_regrow=True,
    )
    seen: list = []
    train(model, optimizer, pruner, 22, seen, inputs)
    assert len({plan for plan, _ in seen if plan is not None}) > 1
    small = topiarist.shrink(model, pruner.plan, inputs)
    torch.testing.assert_close(small.eval()(inputs), model.eval()(inputs), rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------------------------------- dense-sparse-dense


def test_dense_sparse_dense_gives_back_zeros():
    model, zeros = make_mlp(), []

    def count(m):
        zeros.append(sum(int((m[i].weight == 0).sum()) for i in (0, 2)))
        return {}

    result = topiarist.prune(model, X, budget=Budget(sparsity=0.5), schedule="dense-sparse-dense", evaluate=count)
    assert zeros == [36, 36]  # the second time they may move, which nothing did
    assert [row["sparsity"] for row in result.curve] == [0.5, 0.0]
    assert active_plan(result.model) is None or active_plan(result.model).num_removed == 0
    optimizer = torch.optim.SGD(result.model.parameters(), lr=0.1)
    nn.functional.mse_loss(result.model(X), Y).backward()
    optimizer.step()
    for weight in (result.model[0].weight, result.model[2].weight):
        assert bool((weight.grad[weight == 0] == 0).all()), "a weight that has a gradient does not move"


def test_dense_sparse_dense_while_training():
    model = make_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, X, budget=Budget(sparsity=0.5), schedule=DenseSparseDense(0.2, 0.8), end=10)
    zeros = []
    for _ in range(12):
        train(model, optimizer, pruner, 1)
        zeros.append(sum(int((model[i].weight == 0).sum()) for i in (0, 2)))
    assert zeros[:8] == [0] * 2 + [36] * 6
    assert max(zeros[8:]) < 8  # those given back at step 8 move from step 9 on, but where a whole unit was dead
    assert active_plan(model).num_removed == 0


# ------------------------------------------------------------------------------------------------------------ per layer


def test_each_layer_has_its_own_schedule_to_the_amount_of_the_allocation():
    model, found = make_mlp(), []

    def count(m):
        found.append([int((m[i].weight == 0).sum()) for i in (0, 2)])
        return {}

    schedule = {"2": cubic, "*": "linear"}
    result = topiarist.prune(
        model, X, budget=Budget(sparsity=0.5), allocation="uniform", schedule=schedule, steps=4, evaluate=count
    )
    expected = [
        [int(np.floor(0.5 * t * 48 + 0.5)), int(np.floor(0.5 * (1 - (1 - t) ** 3) * 24 + 0.5))]
        for t in (0.25, 0.5, 0.75, 1)
    ]
    assert found == expected
    assert result.plan.achieved["sparsity"] == 0.5


def test_a_schedule_per_layer_ends_where_the_global_ranking_ends():
    model = make_mlp()
    one = topiarist.prune(model, X, budget=Budget(sparsity=0.6)).plan
    other = topiarist.prune(model, X, budget=Budget(sparsity=0.6), schedule={"*": "linear"}, steps=3).plan
    assert one == other


def test_layers_without_a_schedule_are_named():
    with pytest.raises(InputError, match=r"no schedule fits 2\.weight"):
        topiarist.prune(make_mlp(), X, budget=Budget(sparsity=0.5), schedule={"0": "linear"}, steps=2)
    with pytest.raises(InputError, match="'3' fits no layer"):
        topiarist.prune(make_mlp(), X, budget=Budget(sparsity=0.5), schedule={"3": "linear"}, steps=2)


@pytest.mark.parametrize(
    "options", [{"end": 0}, {"begin": 5, "end": 5}, {"end": 3, "every": 4}, {"end": 3, "every": 0}]
)
def test_a_window_without_updates_is_refused(options):
    with pytest.raises(InputError, match=r"there must be one|must be a whole number"):
        Pruner(make_mlp(), X, budget=Budget(sparsity=0.5), **options)


def test_a_budget_of_latency_is_timed_when_the_pruner_is_made():
    """Far above what the model takes, nothing goes; far below all that may go leaves, the update says what is there."""
    model, inputs = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    pruner = Pruner(model, inputs, structure="channel", budget=Budget(latency_ms=1000.0), schedule="linear", end=2)
    assert [pruner.step().num_removed for _ in range(2)] == [0, 0]
    unmask(model)

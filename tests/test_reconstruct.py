"""Reconstruction against NumPy's least squares, on networks that can be restored exactly, and against sabotage."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import topiarist
from topiarist import Budget
from topiarist.errors import InputError
from topiarist.mask import mask, unmask
from topiarist.models import ResNet, VisionTransformer
from topiarist.plan import Plan, Slice
from topiarist.recover import Compensate, NoTraining, Reconstruct, RecoveryContext, compensate, no_training, reconstruct
from topiarist.recover import reconstruct as _function  # the name of the function hides that of its file
from topiarist.recover.least_squares import Rows, refit
from topiarist.recover.lockstep import runners
from topiarist.recover.wiring import wiring

assert _function is reconstruct


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _rows(num: int = 40, num_in: int = 5, num_out: int = 3, is_relu: bool = False) -> Rows:
    x, y = _rand(num, num_in), _rand(num, num_out, seed=1)
    return Rows(x, y, _rand(num, num_out, seed=2), torch.tensor([1.0, -2.0, 0.5]).double(), is_relu)


def _lstsq(x: Tensor, y: Tensor, has_bias: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights (outputs, inputs) and biases by NumPy."""
    columns = np.column_stack([x.numpy(), np.ones(len(x))]) if has_bias else x.numpy()
    found = np.linalg.lstsq(columns, y.numpy(), rcond=None)[0].T
    return (found[:, :-1], found[:, -1]) if has_bias else (found, np.zeros(len(found)))


# ------------------------------------------------------------------ one weight


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_free", [5, 3])
def test_least_squares_against_numpy(has_bias: bool, num_free: int) -> None:
    rows, prior = _rows(), torch.zeros(3, 5, dtype=torch.float64)
    free, held_out = torch.arange(5) < num_free, torch.arange(40) >= 30
    y = (rows.targets - rows.offset) / rows.scale
    exact, constant = (torch.from_numpy(part) for part in _lstsq(rows.inputs[:30, free], y[:30], has_bias))
    rows.targets[30:] = ((rows.inputs[:, free] @ exact.T + constant) * rows.scale + rows.offset)[30:]  # they agree
    weight, bias = refit(rows, held_out, free, prior, has_bias=has_bias, ridge=0.0)
    np.testing.assert_allclose(weight[:, free].numpy(), exact.numpy(), atol=1e-8)
    np.testing.assert_allclose(bias.numpy(), constant.numpy(), atol=1e-8)
    assert not weight[:, ~free].any()


def test_the_ridge_pulls_towards_the_weights_there_are() -> None:
    """One row and two inputs: the direction that no row says anything about keeps its weight."""
    rows = Rows(torch.tensor([[1.0, 0.0]] * 8).double(), torch.full((8, 1), 3.0).double(), torch.zeros(8, 1).double(),
                torch.ones(1).double())  # fmt: skip
    prior = torch.tensor([[1.0, 7.0]]).double()
    weight, _ = refit(rows, torch.arange(8) % 2 == 1, torch.ones(2, dtype=torch.bool), prior, has_bias=False)
    torch.testing.assert_close(weight, torch.tensor([[3.0, 7.0]]).double(), rtol=0, atol=1e-8)


def test_noise_is_not_fitted() -> None:
    """The prior is right and the rows are few: held-out rows keep it."""
    x = _rand(12, 10)
    prior = _rand(1, 10, seed=3)
    noise = _rand(12, 1, seed=4)
    noise[9:] = 0
    rows = Rows(x, x @ prior.T + noise, torch.zeros(12, 1).double(), torch.ones(1).double())
    weight, bias = refit(rows, torch.arange(12) >= 9, torch.ones(10, dtype=torch.bool), prior, has_bias=True)
    assert torch.equal(weight, prior)
    assert not bias.any()


def test_what_a_relu_cuts_off_need_not_be_fitted() -> None:
    x, planted = _rand(400, 4), _rand(2, 4, seed=5)
    y = x @ planted.T
    y = torch.where(y > 0, y, y * 10 - 5)  # below zero the targets say nothing
    held_out, free, prior = torch.arange(400) % 4 == 3, torch.ones(4, dtype=torch.bool), torch.zeros(2, 4).double()
    errors = {}
    for is_relu in (True, False):
        rows = Rows(x, y, torch.zeros_like(y), torch.ones(2).double(), is_relu)
        fit = refit(rows, held_out, free, prior, has_bias=True)
        errors[is_relu] = float(Rows(x, y, torch.zeros_like(y), torch.ones(2).double(), True).error(*fit).sum())
    assert errors[True] < 0.4 * errors[False]


# ------------------------------------------------------------------ whole networks


def _mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def _channels_gone(model: nn.Sequential, *pairs: tuple[int, int], num: int = 4) -> Plan:
    """The first ``num`` outputs of one layer, and what reads them in the other, are gone."""
    removed, slices = {}, {}
    for producer, consumer in pairs:
        gone = torch.arange(model[producer].weight.shape[0]) < num
        removed[f"{producer}.weight:0"] = gone
        slices.setdefault(f"{producer}.weight", []).append(Slice(0, gone))
        slices.setdefault(f"{producer}.bias", []).append(Slice(0, gone))
        slices.setdefault(f"{consumer}.weight", []).append(Slice(1, gone))
    return Plan("channel", removed, {name: tuple(s) for name, s in slices.items()})


@contextmanager
def _cut(model: nn.Module, plan: Plan) -> Iterator[nn.Module]:
    cut = mask(copy.deepcopy(model), plan)
    try:
        yield cut
    finally:
        unmask(cut)


def test_inputs_are_the_pruned_ones_and_targets_the_dense_ones() -> None:
    """Layer by layer against NumPy; with inputs of the dense network the last layer would be another."""
    dense, batches = _mlp(), [_rand(64, 6, seed=s) for s in range(3)]
    plan = _channels_gone(dense, (0, 2), (2, 4))
    x = torch.cat(batches)
    with _cut(dense, plan) as cut, torch.no_grad():
        reconstruct(cut, dense, batches, plan, ridge=0.0)
        for at in (2, 4):
            rows, dense_rows = cut[:at](x), dense[:at](x)
            kept, alive = slice(4, None), slice(4, None) if at == 2 else slice(None)
            wanted, bias = _lstsq(rows[:, kept], dense[: at + 1](x)[:, alive], True)
            np.testing.assert_allclose(cut[at].weight[alive, kept].numpy(), wanted, atol=1e-8)
            np.testing.assert_allclose(cut[at].bias[alive].numpy(), bias, atol=1e-8)
            symmetric, _ = _lstsq(dense_rows[:, kept], dense[: at + 1](x)[:, alive], True)
            assert at == 2 or np.abs(symmetric - wanted).max() > 1e-3
        for name, removed in plan.masks(cut).items():
            assert not cut.get_parameter(name)[removed].any()


class Twice(nn.Module):
    """Every channel of the first convolution has a twin; a residual sum and a classifier follow."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(2, 4, 1)
        self.conv1, self.norm1 = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 4, 3, stride=1, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        with torch.no_grad():
            for norm in (self.norm1, self.norm2):
                for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                    tensor.uniform_(0.5, 1.5)
            for tensor in (self.conv1.weight, self.norm1.weight, self.norm1.bias, self.norm1.running_mean,
                           self.norm1.running_var):  # fmt: skip
                tensor[4:] = tensor[:4]

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 2, h, w) → (batch, 3)."""
        x = F.relu(self.stem(x))
        x = F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + x)
        return self.head(x.mean((2, 3)))


def _twice() -> tuple[nn.Module, Plan, list[Tensor]]:
    dense, gone = Twice().double().eval(), torch.arange(8) < 4
    cuts = {name: (Slice(0, gone),) for name in ("conv1.weight", "norm1.weight", "norm1.bias", "norm1.running_mean",
                                                 "norm1.running_var")}  # fmt: skip
    plan = Plan("channel", {"conv1.weight:0": gone}, {**cuts, "conv2.weight": (Slice(1, gone),)})
    return dense, plan, [_rand(8, 2, 6, 6, seed=s) for s in range(3)]


@pytest.mark.parametrize("is_sabotaged", [False, True])
def test_a_network_of_twins_is_restored_exactly(is_sabotaged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: the dense network is one batch ahead."""
    dense, plan, batches = _twice()
    if is_sabotaged:

        def shifted(model: nn.Module, inputs: list[Tensor], keep: Any) -> Any:
            return runners(model, [*inputs[1:], inputs[0]] if model is dense else inputs, keep)

        monkeypatch.setitem(reconstruct.__wrapped__.__globals__, "runners", shifted)
    x = _rand(5, 2, 6, 6, seed=9)
    with _cut(dense, plan) as cut, torch.no_grad():
        before = float((cut(x) - dense(x)).abs().max())
        rows = reconstruct(cut, dense, batches, plan)
        after = float((cut(x) - dense(x)).abs().max())
    assert before > 1e-2
    assert (after < 1e-6) is not is_sabotaged
    assert is_sabotaged or [row["before"] > row["loss"] for row in rows] == [True]


def test_a_branch_takes_over_what_the_shortcut_lacks() -> None:
    """The weights into a sum are the least squares of the dense sum less the pruned shortcut."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 5, bias=False)
            self.d = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(torch.tanh(self.a(x)))
            return x + self.d(torch.tanh(self.c(x)))

    dense = Sum().double()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.mul_(3)  # into the bends of the tanh
    gone = torch.arange(6) < 4
    cuts = {"a.weight": (Slice(0, gone),), "a.bias": (Slice(0, gone),), "b.weight": (Slice(1, gone),)}
    plan, x = Plan("channel", {"a.weight:0": gone}, cuts), _rand(200, 4)
    with _cut(dense, plan) as cut, torch.no_grad():
        reconstruct(cut, dense, [x], plan, ridge=0.0)
        shortcut = cut.b(torch.tanh(cut.a(x)))
        hidden = torch.tanh(cut.c(shortcut))
        wanted, bias = _lstsq(hidden, dense(x) - shortcut, True)
        np.testing.assert_allclose(cut.d.weight.numpy(), wanted, atol=1e-6)  # of hidden units that are nearly dependent
        np.testing.assert_allclose(cut.d.bias.numpy(), bias, atol=1e-6)


class Kinds(nn.Module):
    """Grouped, depthwise, strided and dilated convolutions, tokens, a stack of matrices, a matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv1d(3, 8, 1)
        self.grouped = nn.Conv1d(8, 8, 3, groups=2, dilation=2)
        self.depthwise = nn.Conv1d(8, 8, 3, groups=8, stride=2, bias=False)
        self.tokens = nn.Linear(8, 6)
        self.own = nn.Parameter(torch.randn(6, 4))
        self.stack = nn.Parameter(torch.randn(2, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, length) → (2, batch · tokens, 3)."""
        x = self.depthwise(torch.tanh(self.grouped(torch.tanh(self.first(x)))))
        x = torch.tanh(self.tokens(torch.tanh(x).mT)) @ self.own
        flat = torch.tanh(x).reshape(-1, 4)
        return torch.bmm(flat.expand(2, *flat.shape), self.stack)


def test_every_kind_of_product_is_refitted() -> None:
    """What was shaken comes back: the dense network is among the solutions."""
    dense = Kinds().double()
    shaken = copy.deepcopy(dense)
    sites = [site.weight for site in wiring(dense, _rand(2, 3, 16))]
    assert sites == ["first.weight", "grouped.weight", "depthwise.weight", "tokens.weight", "own", "stack"]
    with torch.no_grad():
        for name in sites:
            shaken.get_parameter(name).mul_(1.2)
        reconstruct(shaken, dense, [_rand(20, 3, 16, seed=s) for s in range(2)])
    for name, parameter in dense.named_parameters():
        torch.testing.assert_close(shaken.get_parameter(name), parameter, rtol=0, atol=1e-6)


def test_single_weights_are_refitted_each_on_its_own_support() -> None:
    dense = nn.Linear(5, 3).double()
    removed = torch.rand(15, generator=torch.Generator().manual_seed(0)) < 0.4
    plan, x = Plan("weight", {"weight": removed}), _rand(60, 5) + 2 * _rand(60, 1, seed=1)  # correlated
    with _cut(dense, plan) as cut, torch.no_grad():
        reconstruct(cut, dense, [x], plan, ridge=0.0)
        for j, kept in enumerate(~removed.view(3, 5)):
            wanted, _ = _lstsq(x[:, kept], dense(x)[:, [j]], True)
            np.testing.assert_allclose(cut.weight[j, kept].numpy(), wanted[0], atol=1e-8)
            assert not cut.weight[j, ~kept].any()


# ------------------------------------------------------------------ wiring


def test_wiring_of_a_residual_network_and_of_a_transformer() -> None:
    sites = {site.weight: site for site in wiring(ResNet(8, "B"), torch.zeros(2, 3, 32, 32))}
    assert len(sites) == 10
    assert sites["layer1.0.conv2.weight"].partner is not None
    assert sites["layer2.0.conv2.weight"].partner is None  # the projection runs after it, and takes over
    assert sites["layer2.0.shortcut.0.weight"].partner is not None
    assert [sites[f"layer2.0.{n}.weight"].is_relu for n in ("conv1", "conv2", "shortcut.0")] == [True, False, True]
    assert sites["linear.weight"].steps[0].taker == "linear.bias"
    vit = VisionTransformer(image_size=8, patch_size=4, dim=8, depth=1, num_heads=2, num_hidden=8)
    found = {site.weight: site for site in wiring(vit, torch.zeros(2, 3, 8, 8))}
    assert [name for name, site in found.items() if site.partner is not None] == [
        "blocks.0.attn.proj.weight", "blocks.0.fc2.weight"]  # fmt: skip
    assert not any(site.is_relu for site in found.values())


def test_a_weight_used_twice_is_left_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(torch.tanh(self.a(x)))

    assert wiring(Tied(), torch.zeros(2, 3)) == []


# ------------------------------------------------------------------ manners


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_nothing_else_changes() -> None:
    dense, plan, batches = _twice()
    dense.train()
    before, random = _state(dense), torch.get_rng_state()
    with _cut(dense, plan) as cut:
        modes = [m.training for m in cut.modules()]
        flags = [p.requires_grad for p in cut.parameters()]
        reconstruct(cut, dense, [(x, None) for x in batches], plan)
        assert [m.training for m in cut.modules()] == modes
        assert [p.requires_grad for p in cut.parameters()] == flags
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in cut.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_an_error_in_the_model_ends_every_run() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            if len(x) == 5:
                raise ArithmeticError("no five")
            return self.b(x)

    dense = Fails()
    cut = copy.deepcopy(dense)
    with torch.no_grad():
        cut.a.weight.mul_(2)
    with pytest.raises(ArithmeticError, match="no five"):
        reconstruct(cut, dense, [torch.randn(8, 3), torch.randn(5, 3)])


@pytest.mark.parametrize("recovery", [Reconstruct(), Compensate(), NoTraining()])
def test_what_is_missing_is_said(recovery: Any) -> None:
    with pytest.raises(InputError, match="needs data"):
        recovery(nn.Linear(2, 2), RecoveryContext())
    with pytest.raises(InputError, match="needs the dense=… model"):
        recovery(nn.Linear(2, 2), RecoveryContext(data=[torch.zeros(1, 2)]))
    plan = Plan("weight", {"weight": torch.tensor([True, False, False, False])})
    with pytest.raises(InputError, match="no batch"):
        recovery(nn.Linear(2, 2), RecoveryContext(data=[], dense=nn.Linear(2, 2), plan=plan))


# ------------------------------------------------------------------ compensation


def test_a_constant_input_moves_into_the_bias_exactly() -> None:
    """FLAP's check: an input without variance can go without a trace; the wrong mean would show."""
    dense, x = nn.Linear(4, 3).double(), _rand(20, 4)
    x[:, 1] = 2.5
    plan = Plan("weight", {"weight": torch.tensor([False, True, False, False] * 3)})
    with _cut(dense, plan) as cut, torch.no_grad():
        assert float((cut(x) - dense(x)).abs().max()) > 1e-2
        assert compensate(cut, dense, [x[:10], x[10:]], plan) == []
        torch.testing.assert_close(cut(x), dense(x), rtol=0, atol=1e-12)
        compensate(cut, dense, [x], plan)  # a second time changes nothing
        torch.testing.assert_close(cut(x), dense(x), rtol=0, atol=1e-12)


def test_what_a_batch_norm_leaves_of_a_dead_channel_moves_on() -> None:
    """γ = 0: the channel is relu(β) everywhere; away from padded borders the compensation is exact."""
    torch.manual_seed(4)
    dense = nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    ).double().eval()  # fmt: skip
    gone = torch.tensor([False, True, False])
    with torch.no_grad():
        dense[1].weight[1], dense[1].bias[1] = 0.0, 0.7
    cuts = {name: (Slice(0, gone),) for name in ("0.weight", "1.weight", "1.bias")}
    plan, x = Plan("channel", {"0.weight:0": gone}, {**cuts, "3.weight": (Slice(1, gone),)}), _rand(4, 2, 7, 7)
    with _cut(dense, plan) as cut, torch.no_grad():
        assert float((cut(x) - dense(x)).abs().max()) > 1e-2
        assert compensate(cut, dense, [x], plan) == []
        torch.testing.assert_close(cut(x), dense(x), rtol=0, atol=1e-12)


def test_a_product_that_can_take_no_constant_is_named() -> None:
    dense = nn.Linear(2, 2, bias=False)
    plan = Plan("weight", {"weight": torch.tensor([True, False, False, False])})
    with _cut(dense, plan) as cut:
        assert compensate(cut, dense, [torch.ones(3, 2)], plan) == ["weight"]


# ------------------------------------------------------------------ the tier


@pytest.mark.parametrize("recover", ["no-training", "reconstruct", "compensate"])
def test_the_words_work_in_one_call(recover: str) -> None:
    torch.manual_seed(0)
    net, batches = ResNet(8), [torch.randn(16, 3, 16, 16) for _ in range(2)]
    with torch.no_grad():
        net.train()(batches[0])
    seen: list[Any] = []
    result = topiarist.prune(
        net.eval(), batches[0][:1], structure="channel", allocation="uniform", budget=Budget(sparsity=0.5),
        recover=recover, data=batches, keep=["layer?", "layer?.?", "conv1"], on_step=seen.append,
    )  # fmt: skip
    assert result.verification is not None
    assert result.verification.passed
    plain = topiarist.prune(
        net, batches[0][:1], structure="channel", allocation="uniform", budget=Budget(sparsity=0.5),
        keep=["layer?", "layer?.?", "conv1"],
    )  # fmt: skip
    with torch.no_grad():
        errors = [float((m(batches[0]) - net(batches[0])).square().mean()) for m in (result.model, plain.model)]
    assert errors[0] < errors[1]
    assert recover == "compensate" or any("before" in row for row in seen)


def test_the_best_of_what_was_tried_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reconstruction that ruins the model gives way; where both ruin it, it stays as it was."""
    dense, plan, batches = _twice()
    context = RecoveryContext(data=batches, plan=plan, dense=dense)

    def ruin(self: Any, model: nn.Module, context: RecoveryContext) -> list[Any]:
        model.head.weight.mul_(100)
        return []

    with _cut(dense, plan) as cut, torch.no_grad():
        plain, wanted = _state(cut), no_training._outputs(dense, batches)
        error = no_training.output_error(cut, batches, wanted)
        [*_, row] = NoTraining()(cut, context)
        assert row["before"] == pytest.approx(error)
        assert row["loss"] == pytest.approx(no_training.output_error(cut, batches, wanted))
        assert row["loss"] < 1e-12
        cut.load_state_dict(plain)
        monkeypatch.setattr(no_training.Reconstruct, "__call__", ruin)
        [row] = NoTraining()(cut, context)
        assert 1e-12 < row["loss"] <= error
        cut.load_state_dict(plain)
        monkeypatch.setattr(no_training.NoTraining, "_adjust", lambda self, model, *_: ruin(self, model, context))
        [row] = NoTraining()(cut, context)
        assert row["loss"] == row["before"]
        assert all(torch.equal(plain[name], tensor) for name, tensor in cut.state_dict().items())


def test_a_product_between_another_and_its_sum_is_refitted_too() -> None:
    """The dense network has run past the second product by the time that its turn comes."""

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(5)
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = torch.tanh(self.a(x))
            y = self.b(x)
            z = self.c(x)
            return x + y, z

    dense = Between().double()
    shaken = copy.deepcopy(dense)
    with torch.no_grad():
        for parameter in shaken.parameters():
            parameter.mul_(1.1)
        reconstruct(shaken, dense, [_rand(40, 4)])
    for name, parameter in dense.named_parameters():
        torch.testing.assert_close(shaken.get_parameter(name), parameter, rtol=0, atol=1e-6)

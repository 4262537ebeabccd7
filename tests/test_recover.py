"""Training against a NumPy loop, replays bit for bit, each recovery against its definition, checkpoints."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from topiarist import recover
from topiarist.data import Batches, load_data
from topiarist.errors import FormatError, InputError, TrainingError
from topiarist.mask.attach import mask, unmask
from topiarist.models import MODELS, DigitsNet, ResNet, build
from topiarist.plan import Plan
from topiarist.recover import (
    Checkpoints,
    FineTune,
    LRRewind,
    NoRecovery,
    Recalibrate,
    RecoveryContext,
    Reinitialize,
    TrainingRecipe,
    WeightRewind,
    recalibrate,
    reinitialize,
    train,
)

STEP = TrainingRecipe(epochs=4, lr=0.05, momentum=0.9, lr_schedule=("step", (2, 3), 0.1))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def _net(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 3))
    return nn.Sequential(*layers).double()


def _data(shuffle: bool = True) -> Batches:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    return Batches(x, torch.arange(20) % 3, 8, shuffle=shuffle)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _context(**given: Any) -> RecoveryContext:
    return RecoveryContext(**{"data": _data(), "loss": F.cross_entropy, "recipe": STEP, **given})


def _half_plan(model: nn.Module) -> Plan:
    generator = torch.Generator().manual_seed(2)
    weights = {k: p for k, p in model.named_parameters() if p.ndim > 1}
    return Plan("weight", {k: torch.rand(p.numel(), generator=generator) < 0.5 for k, p in weights.items()})


@pytest.fixture
def masked() -> Iterator[tuple[nn.Module, Plan, Checkpoints]]:
    """A trained net with checkpoints of steps 0 and 5, half of its weights masked afterwards."""
    model, checkpoints = _net(), Checkpoints(steps=[0, 5])
    train(model, _data(), F.cross_entropy, STEP, checkpoints=checkpoints)
    plan = _half_plan(model)
    yield mask(model, plan), plan, checkpoints
    unmask(model)


class _FirstForward:
    """The state of a model at the first forward pass after now: what training starts from."""

    def __init__(self, model: nn.Module) -> None:
        self.state: dict[str, Tensor] = {}
        self._handle = model.register_forward_pre_hook(self._keep)

    def _keep(self, model: nn.Module, args: Any) -> None:
        self.state.update(_state(model))
        self._handle.remove()


# the recipe


def test_learning_rates_step_down_exactly_at_the_milestones() -> None:
    for num_batches in (1, 7, 30):
        recipe = TrainingRecipe(epochs=100, lr=1, lr_schedule=("step", [29, 57], 0.5))
        num_steps = recipe.num_steps(num_batches)
        for step in range(num_steps):
            epoch = step // num_batches
            assert recipe.lr_at(step, num_steps) == (1 if epoch < 29 else 0.5 if epoch < 57 else 0.25)


def test_learning_rates_of_the_other_schedules() -> None:
    constant, cosine = TrainingRecipe(lr=0.3), TrainingRecipe(lr=0.3, lr_schedule="cosine")
    function = TrainingRecipe(lr=0.3, lr_schedule=lambda progress: 1 - progress)
    for step in range(8):
        assert constant.lr_at(step, 8) == 0.3
        assert cosine.lr_at(step, 8) == pytest.approx(0.3 * (1 + math.cos(math.pi * step / 8)) / 2, rel=1e-15)
        assert function.lr_at(step, 8) == pytest.approx(0.3 * (1 - step / 8), rel=1e-15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": float("nan")}, "lr must be finite"),
        ({"epochs": -1}, "epochs must be finite"),
        ({"optimizer": "sdg"}, "nearest: sgd"),
        ({"lr_schedule": "cosin"}, "nearest: cosine"),
        ({"lr_schedule": ("stairs", (1,), 0.1)}, "is not understood"),
        ({"lr_schedule": ("step", 3, 0.1)}, "is not understood"),
        ({"lr_schedule": 3}, "is not understood"),
    ],
)
def test_bad_recipes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingRecipe(**options)


# the loop


def _sgd_oracle(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray, recipe: TrainingRecipe, eta: Callable[[int], float]
) -> tuple[np.ndarray, list[float]]:
    """Linear regression by heavy-ball SGD with weight decay, batches of two in order: v ← μv + g + λw, w ← w − ηv."""
    velocity, losses = np.zeros_like(weight), []
    for step in range(int(recipe.epochs) * 3):
        rows = slice(2 * (step % 3), 2 * (step % 3) + 2)
        error = x[rows] @ weight.T - y[rows]
        losses.append(float((error**2).mean()))
        gradient = 2 * error.T @ x[rows] / error.size + recipe.weight_decay * weight
        velocity = recipe.momentum * velocity + gradient
        weight = weight - eta(step) * velocity
    return weight, losses


@pytest.mark.parametrize("shift", [0, 1])
def test_training_against_numpy(shift: int) -> None:
    """With ``shift`` 1 the oracle's learning rates are one step late: the sabotaged twin, which must differ."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    model = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    recipe = TrainingRecipe(epochs=3, lr=0.1, momentum=0.8, weight_decay=0.05, lr_schedule="cosine")
    weight, losses = _sgd_oracle(
        x.numpy(), y.numpy(), model.weight.detach().numpy().copy(), recipe, lambda s: recipe.lr_at(max(s - shift, 0), 9)
    )
    rows = train(model, Batches(x, y, 2), F.mse_loss, recipe)
    same = np.allclose(model.weight.detach().numpy(), weight, rtol=1e-12, atol=1e-14)
    assert same is (shift == 0)
    if same:
        np.testing.assert_allclose([row["loss"] for row in rows], losses, rtol=1e-12)
        assert [(row["step"], row["lr"]) for row in rows] == [(s, recipe.lr_at(s, 9)) for s in range(9)]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", lambda p, lr: torch.optim.RMSprop(p, lr)])
def test_every_optimizer_learns_and_modes_stay(optimizer: Any) -> None:
    model = _net().eval()
    model[1].train()
    modes = [m.training for m in model.modules()]
    recipe = TrainingRecipe(epochs=20, lr=0.01, optimizer=optimizer, lr_schedule="cosine")
    rows = train(model, _data(), F.cross_entropy, recipe)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert [m.training for m in model.modules()] == modes


def test_rows_and_evaluations_arrive_at_the_end_of_each_epoch() -> None:
    model, seen = _net(), []

    def evaluate(net: nn.Module) -> dict[str, float]:
        net.eval()
        return {"accuracy": 0.5}

    rows = train(
        model, _data(), F.cross_entropy, TrainingRecipe(epochs=2.5, lr=0.1), on_step=seen.append, evaluate=evaluate
    )
    assert len(rows) == 8  # 2.5 epochs of 3 batches, rounded half up
    assert [i for i, row in enumerate(rows) if "accuracy" in row] == [2, 5, 7]
    assert [{k: v for k, v in row.items() if k != "num_steps"} for row in seen] == rows
    assert {row["num_steps"] for row in seen} == {8}
    assert model.training


def test_inputs_may_be_dicts_tuples_and_any_iterable_of_batches() -> None:
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3

    class Endless(IterableDataset):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return zip(x, y, strict=True)

    recipe = TrainingRecipe(epochs=2, lr=0.1)
    expected = train(_net(), [(x[:3], y[:3]), (x[3:], y[3:])], F.cross_entropy, recipe)
    for data in (
        [({"input": x[:3]}, y[:3]), ({"input": x[3:]}, y[3:])],
        [((x[:3],), y[:3]), ((x[3:],), y[3:])],
        DataLoader(TensorDataset(x, y), batch_size=3),
        DataLoader(Endless(), batch_size=3),
    ):
        assert train(_net(), data, F.cross_entropy, recipe) == expected


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    model = _net()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    weights = {k: p.detach().clone() for k, p in model.named_parameters()}
    with pytest.raises(TrainingError, match=r"the loss is nan at step 0 \(lr 0.1\)"):
        train(model, [(x * float("nan"), y)], F.cross_entropy, TrainingRecipe())
    assert all(torch.equal(p, weights[k]) for k, p in model.named_parameters())


def test_bad_data_is_refused() -> None:
    class Liar(list[Any]):
        def __len__(self) -> int:
            return 5

    batch = (torch.randn(3, 4, dtype=torch.float64), torch.arange(3))
    for data, message in (
        ([], "yields no batch"),
        (iter([batch]), "only once"),
        ([batch[0]], "pair"),
        (Liar([batch]), "said 5 batches and yielded 1"),
    ):
        model = _net()
        with pytest.raises(InputError, match=message):
            train(model, data, F.cross_entropy, TrainingRecipe())
        assert model.training
    frozen = _net().requires_grad_(False)
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        train(frozen, [batch], F.cross_entropy, TrainingRecipe())
    with pytest.raises(InputError, match="start_step 9 lies outside"):
        train(_net(), [batch], F.cross_entropy, TrainingRecipe(), start_step=9)


def test_the_default_net_learns_the_digits() -> None:
    torch.manual_seed(0)
    data, model = load_data("digits", batch_size=64), DigitsNet()
    recipe = TrainingRecipe(epochs=6, lr=0.1, weight_decay=5e-4, nesterov=True, lr_schedule="cosine")
    train(model, data.train, F.cross_entropy, recipe)
    model.eval()
    with torch.no_grad():
        num_right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.test)
    assert num_right / 360 >= 0.97


# checkpoints


@pytest.fixture(params=["memory", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "run" if request.param == "folder" else None


RECIPES = {
    "sgd": TrainingRecipe(epochs=4, lr=0.05, momentum=0.0),
    "momentum": STEP,
    "adam": TrainingRecipe(epochs=4, lr=0.05, optimizer="adam", lr_schedule="cosine"),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("stop", [0, 4, 5])
def test_ctrl_c_then_resume_is_the_uninterrupted_run_bit_for_bit(
    place: Path | None, recipe: TrainingRecipe, stop: int
) -> None:
    model = _net(dropout=0.5)
    torch.manual_seed(7)
    whole = train(model, _data(), F.cross_entropy, recipe)

    def interrupt(row: Mapping[str, float]) -> None:
        if row["step"] == stop:
            raise KeyboardInterrupt

    other = _net(dropout=0.5)
    torch.manual_seed(7)
    with pytest.raises(KeyboardInterrupt):
        train(other, _data(), F.cross_entropy, recipe, checkpoints=(first := Checkpoints(place)), on_step=interrupt)
    again = first if place is None else Checkpoints(place)  # a new process sees only the folder
    assert again.saved == [stop + 1]
    fresh = _net(dropout=0.5)
    torch.manual_seed(8)
    rest = train(fresh, _data(), F.cross_entropy, recipe, checkpoints=again, resume=True)
    assert rest == whole[stop + 1 :]
    assert _equal(_state(fresh), _state(model))


def test_a_real_ctrl_c_waits_for_the_end_of_the_step() -> None:
    model, checkpoints, steps = _net(), Checkpoints(), []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return F.cross_entropy(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        train(model, _data(), loss, STEP, checkpoints=checkpoints, on_step=steps.append)
    assert len(steps) == 4
    assert checkpoints.saved == [4]
    expected = _net()
    train(expected, _data(), F.cross_entropy, STEP, checkpoints=(before := Checkpoints(steps=[4])))
    before.restore(4, expected)
    assert _equal(_state(model), _state(expected))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_breaks_in_and_saves_no_half_step() -> None:
    checkpoints = Checkpoints(steps=[1])

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if checkpoints.saved:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return F.cross_entropy(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        train(_net(), _data(), loss, STEP, checkpoints=checkpoints)
    assert checkpoints.saved == [1]


def test_checkpoints_are_saved_at_their_steps_and_restored_exactly(place: Path | None) -> None:
    model, checkpoints = _net(), Checkpoints(place, steps=[0, 3, 99])
    states = {0: _state(model)}
    train(
        model,
        _data(),
        F.cross_entropy,
        STEP,
        checkpoints=checkpoints,
        on_step=lambda row: states.update({int(row["step"]) + 1: _state(model)}),
    )
    assert checkpoints.saved == [0, 3]
    for step in (0, 3):
        checkpoints.restore(step, model)
        assert _equal(_state(model), states[step])
    if place:
        assert sorted(p.name for p in place.iterdir()) == ["step-0.safetensors", "step-3.safetensors"]


def test_tied_weights_and_the_users_random_state_stay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    checkpoints = Checkpoints()
    checkpoints.save(0, model)
    random = torch.get_rng_state()
    model[0].weight.data.zero_()
    checkpoints.restore(0, model)
    assert model[1].weight is model[0].weight
    assert bool(model[0].weight.any())
    assert torch.equal(torch.get_rng_state(), random)


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, checkpoints = _net(), Checkpoints(tmp_path)
    checkpoints.save(1, model)
    before = (tmp_path / "step-1.safetensors").read_bytes()

    def fail(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("topiarist.recover.checkpoints.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(1, model)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1.safetensors"]
    assert (tmp_path / "step-1.safetensors").read_bytes() == before


def test_bad_checkpoints_are_refused_and_the_model_stays(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, _net())
    checkpoints.save(2, nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 3)))
    checkpoints.save(3, nn.Linear(4, 6))
    save_file({"x": torch.zeros(1)}, tmp_path / "step-4.safetensors")
    whole = (tmp_path / "step-1.safetensors").read_bytes()
    (tmp_path / "step-5.safetensors").write_bytes(whole[:-40])
    (tmp_path / "step-6.safetensors").write_bytes(b"\x80\x04K\x01.")  # a pickle
    model = _net()
    reinitialize(model, 5)
    before = _state(model)
    for step, error, message in (
        (0, InputError, r"no checkpoint of step 0 \(saved: 1, 2, 3, 4, 5, 6\)"),
        (2, InputError, r"0.weight is \(7, 4\) there and \(6, 4\) here"),
        (3, InputError, "the checkpoint has no 0.bias"),
        (4, FormatError, "is not a topiarist checkpoint"),
        (5, FormatError, "damaged"),
        (6, FormatError, "damaged"),
    ):
        with pytest.raises(error, match=message):
            checkpoints.restore(step, model)
        assert _equal(_state(model), before)


# recoveries


def _assert_rewound(
    model: nn.Module, plan: Plan, start: Mapping[str, Tensor], checkpoint: Mapping[str, Tensor]
) -> None:
    """Training starts from checkpoint k bit for bit where nothing is masked, from zero where it is."""
    masks = plan.masks(model)
    for name, tensor in start.items():
        removed = masks.get(name, torch.zeros_like(tensor, dtype=torch.bool))
        assert torch.equal(tensor[~removed], checkpoint[name][~removed]), name
        assert not tensor[removed].any(), name


def _checkpoint(checkpoints: Checkpoints, step: int) -> dict[str, Tensor]:
    model = _net()
    checkpoints.restore(step, model)
    return _state(model)


@pytest.mark.parametrize("step", [0, 5])
def test_weight_rewinding(masked: tuple[nn.Module, Plan, Checkpoints], step: int) -> None:
    model, plan, checkpoints = masked
    first, memories = _FirstForward(model), []

    def sgd(parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr, momentum=0.9)
        optimizer.register_step_pre_hook(lambda o, *_: memories.append(len(o.state)))
        return optimizer

    recipe = TrainingRecipe(STEP.epochs, STEP.lr, sgd, lr_schedule=STEP.lr_schedule)
    rows = WeightRewind(to_step=step)(model, _context(checkpoints=checkpoints, recipe=recipe))
    _assert_rewound(model, plan, first.state, _checkpoint(checkpoints, step))
    assert [(row["step"], row["lr"]) for row in rows] == [(s, STEP.lr_at(s, 12)) for s in range(step, 12)]
    assert memories[0] == 0  # a fresh optimizer
    assert memories[1] > 0
    assert all(not p[plan.masks(model)[k]].any() for k, p in model.named_parameters() if k in plan.masks(model))


def test_the_rewinding_oracle_catches_kept_weights_and_kept_statistics(
    masked: tuple[nn.Module, Plan, Checkpoints], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan, checkpoints = masked
    first = _FirstForward(model)
    LRRewind(to_step=5)(model, _context())
    with pytest.raises(AssertionError):
        _assert_rewound(model, plan, first.state, _checkpoint(checkpoints, 5))

    rewound = _checkpoint(checkpoints, 5)

    def parameters_only(self: Checkpoints, step: int, net: nn.Module) -> None:
        for name, parameter in net.named_parameters():
            parameter.data.copy_(rewound[name])

    monkeypatch.setattr(Checkpoints, "restore", parameters_only)
    first = _FirstForward(model)
    WeightRewind(to_step=5)(model, _context(checkpoints=checkpoints))
    with pytest.raises(AssertionError, match="running_mean"):
        _assert_rewound(model, plan, first.state, rewound)


def test_a_replay_without_mask_and_momentum_is_the_training_itself() -> None:
    recipe = TrainingRecipe(epochs=4, lr=0.05, momentum=0, lr_schedule="cosine")
    model, checkpoints = _net(), Checkpoints(steps=[5])
    rows = train(model, _data(), F.cross_entropy, recipe, checkpoints=checkpoints)
    trained = _state(model)
    replayed = WeightRewind(to_fraction=5 / 12)(model, _context(checkpoints=checkpoints, recipe=recipe))
    assert replayed == rows[5:]
    assert _equal(_state(model), trained)


def test_learning_rate_rewinding_and_fine_tuning_keep_the_weights(
    masked: tuple[nn.Module, Plan, Checkpoints],
) -> None:
    model, plan, _ = masked
    fine_tune = FineTune(TrainingRecipe(epochs=2, lr=0.003))
    for recovery, rates in (
        (LRRewind(to_fraction=0.5), [STEP.lr_at(s, 12) for s in range(6, 12)]),
        (LRRewind(), [STEP.lr_at(s, 12) for s in range(12)]),
        (fine_tune, [0.003] * 6),
    ):
        before, first = _state(model), _FirstForward(model)
        seen: list[Mapping[str, float]] = []
        rows = recovery(model, _context(progress=seen.append))
        assert _equal(first.state, before)
        assert [row["lr"] for row in rows] == rates
        assert len(seen) == len(rows)
        assert not _equal(_state(model), before)
        assert all(not dict(model.named_parameters())[k][m].any() for k, m in plan.masks(model).items())


def test_reinitialization_draws_afresh_under_the_mask(masked: tuple[nn.Module, Plan, Checkpoints]) -> None:
    model, plan, _ = masked
    trained, random = _state(model), torch.get_rng_state()
    starts = []
    for seed in (1, 1, 2):
        first = _FirstForward(model)
        rows = Reinitialize(seed)(model, _context())
        assert [row["lr"] for row in rows] == [STEP.lr_at(s, 12) for s in range(12)]
        starts.append(first.state)
    assert torch.equal(torch.get_rng_state(), random)
    assert _equal(starts[0], starts[1])
    masks = plan.masks(model)
    for name in ("0.weight", "4.weight"):
        stays = ~masks[name]
        assert not starts[0][name][~stays].any()
        assert bool((starts[0][name] != trained[name])[stays].all())
        assert bool((starts[0][name] != starts[2][name])[stays].all())
    assert not starts[0]["1.running_mean"].any()
    assert bool((starts[0]["1.weight"] == 1).all())


def test_reinitialized_networks_have_the_spread_of_new_ones() -> None:
    model = ResNet(8)
    for p in model.parameters():
        p.data.fill_(7)
    reinitialize(model)
    for name, p in model.named_parameters():
        if p.ndim == 4 and p.numel() > 1000:
            assert p.std().item() == pytest.approx(math.sqrt(2 / p[0].numel()), rel=0.1), name
    for name in MODELS:
        if name not in ("resnet110", "vgg16_bn"):
            reinitialize(build(name))
    reinitialize(nn.TransformerEncoderLayer(8, 2))


def test_a_parameter_that_nothing_resets_is_named() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(2, 2), nn.Parameter(torch.ones(2))

    model = nn.Sequential(Scaled())
    before = _state(model)
    with pytest.raises(InputError, match=r"0.scale cannot be drawn anew"):
        reinitialize(model)
    assert _equal(_state(model), before)


def _assert_recalibrated(model: nn.Sequential, batches: list[Tensor]) -> None:
    """Over equal batches the mean is that of all rows; the variance is the mean of the batches' unbiased ones."""
    weight, bias = model[0].weight.detach().numpy(), model[0].bias.detach().numpy()
    hidden = [x.numpy() @ weight.T + bias for x in batches]
    np.testing.assert_allclose(model[1].running_mean.numpy(), np.concatenate(hidden).mean(0), rtol=1e-12)
    expected = np.mean([h.var(0, ddof=1) for h in hidden], 0)
    np.testing.assert_allclose(model[1].running_var.numpy(), expected, rtol=1e-12)
    assert int(model[1].num_batches_tracked) == len(batches)


def test_recalibration_against_numpy() -> None:
    model = _net(dropout=0.5)
    model[1].momentum = 0.3
    model.eval()
    batches = list(torch.randn(4, 5, 4, dtype=torch.float64) + 2)
    parameters = {k: p.detach().clone() for k, p in model.named_parameters()}
    random = torch.get_rng_state()
    rows = Recalibrate()(model, RecoveryContext(data=[(x, None) for x in batches]))
    assert rows == []
    _assert_recalibrated(model, batches)
    assert model[1].momentum == 0.3
    assert not any(m.training for m in model.modules())
    assert all(torch.equal(p, parameters[k]) and p.grad is None for k, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), random)  # dropout did not run
    recalibrate(model, batches, num_batches=2)
    _assert_recalibrated(model, batches[:2])


def test_the_recalibration_oracle_catches_an_exponential_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.BatchNorm1d, "momentum", property(lambda _: 0.1, lambda *_: None), raising=False)
    model, batches = _net(), list(torch.randn(4, 5, 4, dtype=torch.float64) + 2)
    recalibrate(model, batches)
    with pytest.raises(AssertionError, match="Not equal"):
        _assert_recalibrated(model, batches)


def test_a_failed_recalibration_changes_nothing() -> None:
    model = _net()
    before = _state(model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        recalibrate(model, [torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 9, dtype=torch.float64)])
    assert _equal(_state(model), before)
    assert all(m.training for m in model.modules())
    assert model[1].momentum == 0.1
    for data, net, message in (
        ([], model, "yields no batch"),
        ([torch.zeros(2, 4)], nn.Linear(4, 2), "has no batch norm"),
    ):
        with pytest.raises(InputError, match=message):
            recalibrate(net, data)
    with pytest.raises(InputError, match="num_batches must be at least 1"):
        recalibrate(model, [torch.zeros(2, 4)], 0)


def test_what_a_recovery_lacks_is_named() -> None:
    model = _net()
    before = _state(model)
    for recovery, given, message in (
        (FineTune(), {"data": None}, r"FineTune trains: it needs data=… and loss=…"),
        (FineTune(), {"loss": None}, "needs data"),
        (Recalibrate(), {"data": None}, "Recalibrate measures"),
        (LRRewind(), {"recipe": None}, r"LRRewind\(recipe="),
        (Reinitialize(), {"recipe": None}, r"Reinitialize\(recipe="),
        (WeightRewind(to_step=4), {}, r"train with Checkpoints\(steps=\[4\]\)"),
        (WeightRewind(to_step=4), {"checkpoints": Checkpoints()}, "no checkpoint of step 4 .saved: none"),
        (LRRewind(to_step=13), {}, "the recipe has 12 steps"),
    ):
        with pytest.raises(InputError, match=message):
            recovery(model, _context(**given))
        assert _equal(_state(model), before)
    for make in (
        lambda: WeightRewind(to_step=1, to_fraction=0.1),
        lambda: WeightRewind(to_step=-1),
        lambda: LRRewind(to_fraction=1.5),
    ):
        with pytest.raises(InputError):
            make()


def test_names_stand_for_recoveries() -> None:
    kinds = {"none": NoRecovery, "fine-tune": FineTune, "recalibrate": Recalibrate, "rewind": WeightRewind}
    kinds |= {"lr-rewind": LRRewind, "reinitialize": Reinitialize}
    for name, kind in kinds.items():
        assert type(recover.resolve(name)) is kind
    assert all(callable(recover.resolve(name)) for name in recover.NAMES)
    mine = FineTune(TrainingRecipe(epochs=3))
    assert recover.resolve(mine) is mine
    with pytest.raises(InputError, match=r"no recovery is called 'finetune' \(nearest: fine-tune"):
        recover.resolve("finetune")
    with pytest.raises(InputError, match="a name or a function"):
        recover.resolve(3)  # type: ignore[arg-type]

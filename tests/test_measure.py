"""Counts against loops and published numbers, times in turn, and a model that is left as it was."""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from topiarist.errors import InputError, TopiaristError, TraceError
from topiarist.mask import PrunableDense
from topiarist.measure import (
    Latency,
    Measurement,
    bytes_in_memory,
    bytes_on_disk,
    compare,
    evaluate,
    latency,
    macs,
    measure,
    nonzero_macs,
    num_nonzero,
    num_params,
    peak_activation_bytes,
)
from topiarist.measure.latency import _summary
from topiarist.measure.quiet import undisturbed
from topiarist.models import INPUT_SHAPES, MODELS, build

# ------------------------------------------------------------------------------------------------- parameters and MACs


@pytest.mark.parametrize(
    ("name", "expected_params", "expected_macs"),
    [
        ("resnet20", 269_722, 40_551_040),
        ("resnet32", 464_154, 68_862_592),
        ("resnet56", 853_018, 125_485_696),
        ("resnet110", 1_727_962, 252_887_680),
        ("lenet-300-100", 266_610, 266_200),
    ],
)
def test_published_counts(name: str, expected_params: int, expected_macs: int) -> None:
    model = build(name)
    count = macs(model, torch.zeros(1, *INPUT_SHAPES[name]))
    assert (num_params(model), count.total) == (expected_params, expected_macs)


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("resnet") or "20" in name])
def test_macs_agree_with_torchs_own_counter_and_by_module_adds_up(name: str) -> None:
    model = build(name)
    x = torch.zeros(2, *INPUT_SHAPES[name])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    count = macs(model, x)
    assert count.total == count.by_module[""] == counter.get_total_flops() / 2
    leaves = {n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    in_leaves = sum(number for n, number in count.by_module.items() if n in leaves)
    assert in_leaves == count.total if name != "vit" else in_leaves < count.total
    top = {n.partition(".")[0] for n in count.by_module if n}
    assert sum(count.by_module[n] for n in top) == count.total


def conv_macs_by_loop(layer: nn.Conv2d, height: int, width: int) -> int:
    """Kernel positions one by one, those outside of the image included as torch's kernels do."""
    k, s, p, d = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    number = 0
    for out in range(layer.out_channels):
        group = out // (layer.out_channels // layer.groups)
        for channel in range(layer.in_channels):
            if channel // (layer.in_channels // layer.groups) == group:
                for _y in range(-p[0], height + p[0] - d[0] * (k[0] - 1), s[0]):
                    for _x in range(-p[1], width + p[1] - d[1] * (k[1] - 1), s[1]):
                        number += k[0] * k[1]
    return number


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(1, 0), bias=False),
        nn.Conv2d(4, 8, 3, groups=2, dilation=2),
        nn.Conv2d(4, 4, 5, groups=4, padding=2),
    ],
)
def test_convolutions_against_a_loop(layer: nn.Conv2d) -> None:
    assert macs(layer, torch.zeros(3, 4, 9, 8)).total == 3 * conv_macs_by_loop(layer, 9, 8)


class Oddities(nn.Module):
    """Products that are no layer: matrix times vector, fused attention, one weight used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 8))
        self.vector = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (x @ self.weight for _ in range(3))
        return F.scaled_dot_product_attention(q, k, v)[0, 0] @ self.vector


def test_products_that_are_no_layer() -> None:
    tokens, dim = 5, 8
    expected = 3 * tokens * dim * dim + 2 * tokens * tokens * dim + tokens * dim
    model = Oddities()
    assert macs(model, torch.randn(1, 1, tokens, dim)).total == expected
    model.weight.data[:, ::2] = 0
    model.vector.data[:6] = 0
    expected = 3 * tokens * dim * dim // 2 + 2 * tokens * tokens * dim + tokens * dim // 4
    assert nonzero_macs(model, torch.randn(1, 1, tokens, dim)) == expected


def test_layers_that_torch_fuses() -> None:
    """LSTM: 4 gates · (in + hidden) per step; an encoder layer: its projections, attention and feed-forward."""
    assert macs(nn.LSTM(3, 5), torch.zeros(7, 2, 3)).total == 7 * 2 * 4 * 5 * (3 + 5)
    dim, tokens, hidden = 8, 6, 16
    encoder = nn.TransformerEncoderLayer(dim, 2, hidden, batch_first=True)
    per_token = 3 * dim * dim + dim * dim + 2 * dim * hidden
    assert macs(encoder, torch.zeros(1, tokens, dim)).total == tokens * per_token + 2 * tokens * tokens * dim
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled or not torch.backends.mkldnn.is_available()


@pytest.mark.parametrize("name", ["resnet20", "lenet5", "vit"])
def test_nonzero_macs_by_the_formula(name: str) -> None:
    """Σ over layers of MACs · nnz / size, from the count per module; attention between activations stays whole."""
    torch.manual_seed(0)
    model = build(name)
    x = torch.randn(2, *INPUT_SHAPES[name])
    dense = macs(model, x)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    expected = dense.total - sum(dense.by_module[n] for n in layers)
    for layer_name, layer in layers.items():
        layer.weight.data *= torch.rand_like(layer.weight) < 0.3
        nonzero = int((layer.weight != 0).sum())
        expected += dense.by_module[layer_name] * nonzero // layer.weight.numel()
    count = macs(model, x)
    assert count.nonzero == expected
    assert count.total == dense.total


def test_weights_computed_from_parameters_count_as_weights() -> None:
    masked = PrunableDense(10, 6)
    masked.mask[:, 3:] = 0
    assert nonzero_macs(masked, torch.zeros(4, 10)) == 4 * 6 * 3
    normed = parametrizations.weight_norm(nn.Linear(10, 6))
    normed.parametrizations.weight.original1.data[:, 5:] = 0
    assert nonzero_macs(normed, torch.zeros(4, 10)) == 4 * 6 * 5


def test_a_tied_weight_is_one_parameter_and_two_products() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    model[0].weight.data[0] = 0
    assert (num_params(model), num_nonzero(model)) == (16, 12)
    count = macs(model, torch.ones(1, 4))
    assert (count.total, count.nonzero) == (32, 24)
    assert bytes_in_memory(model) == 64


def test_counts_per_tensor_instead_of_per_parameter_would_be_noticed() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert sum(p.numel() for _, p in model.named_parameters(remove_duplicate=False)) != num_params(model)


# ------------------------------------------------------------------------------------------------- memory and disk


def test_peak_memory_of_chains_by_hand() -> None:
    x = torch.zeros(1, 4)

    class Residual(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a = x.repeat(1, 100)  # 1600 bytes, alive to the end
            b = a * 2  # 1600 more
            b = b * 2  # 1600 more while b is made anew
            return (a + b)[:, :1]  # 1600 more, the last b still there

    assert peak_activation_bytes(Residual(), x) == 4800
    assert peak_activation_bytes(nn.Identity(), x) == 0
    assert peak_activation_bytes(nn.Flatten(), torch.zeros(2, 3, 4)) == 0  # a view of the input
    assert peak_activation_bytes(nn.ReLU(inplace=True), x) == 0


def test_zeros_shrink_the_file_and_not_the_memory() -> None:
    dense = build("lenet-300-100")
    masked = copy.deepcopy(dense)
    for layer in (masked.fc1, masked.fc2):
        layer.weight.data *= torch.rand_like(layer.weight) < 0.1
    assert bytes_in_memory(masked) == bytes_in_memory(dense) == 4 * 266_610
    assert bytes_on_disk(dense) > 4 * 266_610
    assert bytes_on_disk(masked) < bytes_on_disk(dense) / 5  # one bit in 32 for each zero, another for −0.0


# ------------------------------------------------------------------------------------------------- nothing left behind


class Untidy(nn.Module):
    """Everything a forward pass can leave behind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("state", torch.zeros(4))
        self.calls = 0
        self.cache: Tensor | None = None
        self.norm.eval()  # a mixture of modes
        self.linear.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache = x * 2
        self.extra = self.linear(x)
        self.state += 1
        self.register_buffer("late", torch.zeros(1))
        self.norm.running_mean = self.norm.running_mean + torch.rand(4)
        return self.dropout(self.norm(self.extra)) + self.state + torch.rand(4)


def everything(model: nn.Module) -> dict[str, Any]:
    """What a module holds, with the identity of every object and the contents of every tensor."""
    state: dict[str, Any] = {"rng": torch.get_rng_state().tolist(), "keys": list(model.state_dict())}
    for name, module in model.named_modules():
        for key, value in {**module.__dict__, **module._parameters, **module._buffers}.items():
            held = value.tolist() if isinstance(value, Tensor) else repr(value)
            grad = value.requires_grad if isinstance(value, Tensor) else None
            state[f"{name}.{key}"] = (id(value), held, grad)
    hooks = (nn_module._global_forward_hooks, nn_module._global_forward_pre_hooks)
    state["hooks"] = [list(h) for h in hooks]
    state["threads"] = torch.get_num_threads()
    return state


def batches(_: nn.Module) -> Any:
    return evaluate(_, [(torch.ones(2, 4), torch.zeros(2, 4))], F.mse_loss)


MEASURES: dict[str, Callable[[nn.Module], Any]] = {
    "macs": lambda m: macs(m, torch.ones(2, 4)),
    "latency": lambda m: latency(m, torch.ones(2, 4), seconds=0.01, num_threads=1),
    "peak": lambda m: peak_activation_bytes(m, torch.ones(2, 4)),
    "measure": lambda m: measure(m, torch.ones(2, 4), seconds=0.01, baseline=m),
    "evaluate": batches,
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(name: str, fails: bool) -> None:
    model = Untidy()
    if fails:
        model.dropout.forward = lambda x: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    before = everything(model)
    if fails:
        with pytest.raises((TraceError, ZeroDivisionError)):
            MEASURES[name](model)
    else:
        MEASURES[name](model)
    assert everything(model) == before


def test_the_check_on_leaving_notices_a_plain_call() -> None:
    model = Untidy()
    for sabotage in (lambda: model(torch.ones(2, 4)), model.eval, lambda: model.linear.requires_grad_(True)):
        before = everything(model)
        sabotage()
        assert everything(model) != before


def test_undisturbed_is_evaluation_mode_without_gradients() -> None:
    model = Untidy()
    with undisturbed(model) as same:
        assert same is model
        assert not any(m.training for m in model.modules())
        assert not model(torch.ones(2, 4)).requires_grad


def test_compiled_models_are_measured_and_left() -> None:
    model = build("mlp").eval()
    compiled = torch.compile(model, backend="eager")
    x = torch.zeros(1, *INPUT_SHAPES["mlp"])
    assert macs(compiled, x).total == macs(model, x).total
    found = measure(model, x, baseline=compiled, seconds=0.02)
    assert found.baseline_name == "compiled dense"
    assert found.baseline is not None
    assert found.baseline.macs == found.macs
    assert torch.equal(compiled(x), model(x))


def test_wrong_inputs_come_with_their_shapes() -> None:
    model = build("resnet20")
    for function in (macs, peak_activation_bytes, latency, measure):
        with pytest.raises(
            TraceError, match=r"ResNet does not run on the example inputs, of shapes \[\(1, 1, 8, 8\)\]"
        ):
            function(model, torch.zeros(1, 1, 8, 8))
    with pytest.raises(TopiaristError):
        macs(model, {"y": torch.zeros(1, 3, 32, 32)})


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_are_not_filled_in_by_measuring() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(InputError, match="run the model once first"):
        macs(model, torch.zeros(1, 2))
    assert isinstance(model[0], nn.LazyLinear)


# ------------------------------------------------------------------------------------------------- latency


class Clock:
    """Time that passes only where work is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Working(nn.Module):
    """Takes ``seconds`` on a clock, whatever the machine does."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.seconds
        return x

    def __deepcopy__(self, memo: dict[int, Any]) -> Working:
        return Working(self.clock, self.seconds)


def test_ratios_of_known_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(sys.modules[compare.__module__], "timer", clock)
    x = torch.zeros(1)
    models = {"slow": (Working(clock, 4 / 1024), x), "fast": (Working(clock, 1 / 1024), x)}
    times = compare(models, seconds=0.3, num_threads=1)
    assert times["fast"].speedup_over(times["slow"]) == pytest.approx(4, rel=1e-9)
    assert times["fast"].median_ms == pytest.approx(1000 / 1024, rel=1e-9)
    assert times["slow"].speedup_over(times["slow"]) == 1
    assert times["fast"].num_runs >= len(times["fast"].times_ms) >= 5


def test_models_take_turns() -> None:
    """Blocks alternate and the first place rotates, so drift hits all alike."""
    order: list[str] = []

    class Named(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            if not order or order[-1] != self.name:
                order.append(self.name)
            return x

    x = torch.zeros(1)
    times = compare({"a": (Named("a"), x), "b": (Named("b"), x), "c": (Named("c"), x)}, seconds=0.005)
    num_rounds = len(times["a"].times_ms)
    assert num_rounds >= 5
    assert all(order.count(name) > num_rounds / 2 for name in "abc")
    assert all(len(between) <= 4 for between in "".join(order).split("b"))
    turns = "".join(order)
    assert {"ab", "bc", "ca"} <= {turns[i : i + 2] for i in range(len(turns) - 1)}


def timed(times: list[float]) -> Latency:
    return _summary(times, 1)


def test_drift_cancels_and_disturbances_are_left_out() -> None:
    """A machine that slows down 16-fold, and interruptions in two of three blocks, change no ratio."""
    drift = [2.0 ** (i // 12) for i in range(60)]
    noise = [0.0 if i % 3 == 0 else 7.0 * (i % 5) for i in range(60)]
    slow = timed([4 * d + n for d, n in zip(drift, noise, strict=True)])
    fast = timed([2 * d + n for d, n in zip(drift, reversed(noise), strict=True)])
    assert fast.speedups_over(slow) == [2.0] * 5
    assert statistics.median(slow.times_ms) / statistics.median(fast.times_ms) != pytest.approx(2, rel=0.05)  # the twin
    with pytest.raises(InputError, match="measured together"):
        fast.speedup_over(timed([1.0] * 5))


def test_summary_of_times() -> None:
    found = timed([float(i) for i in (5, 1, 4, 2, 3)])
    assert (found.median_ms, found.iqr_ms, found.quiet_ms, found.num_runs) == (3, 2, 1, 5)
    assert timed([float(i) for i in range(21)]).quiet_ms == 2


@pytest.mark.parametrize("arguments", [{"seconds": 0}, {"seconds": math.nan}, {"num_threads": 0}])
def test_impossible_requests_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        latency(nn.Identity(), torch.zeros(1), **arguments)
    with pytest.raises(InputError):
        compare({})


# ------------------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_evaluation_is_exact_whatever_the_batches(batch_size: int) -> None:
    """The oracle: one example at a time."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    x, y = torch.randn(10, 5, dtype=torch.float64), torch.randint(3, (10,))
    found = evaluate(model, list(zip(x.split(batch_size), y.split(batch_size), strict=True)), nn.CrossEntropyLoss())
    losses = [-torch.log_softmax(model(x[i]), 0)[y[i]].item() for i in range(10)]
    hits = [int(model(x[i]).argmax()) == int(y[i]) for i in range(10)]
    assert found["loss"] == pytest.approx(sum(losses) / 10, rel=1e-12)
    assert found["accuracy"] == sum(hits) / 10


def test_a_mean_over_batches_would_be_wrong() -> None:
    x, y = torch.eye(3), torch.tensor([0, 1, 0])
    data = list(zip(x.split(2), y.split(2), strict=True))
    by_batches = sum((b.argmax(1) == t).float().mean().item() for b, t in data) / len(data)  # the sabotaged twin
    assert evaluate(nn.Identity(), data, nn.CrossEntropyLoss())["accuracy"] == 2 / 3 != by_batches


def test_evaluation_of_other_shapes() -> None:
    pixels = [(torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long))]
    found = evaluate(nn.Identity(), pixels, nn.CrossEntropyLoss())
    assert found["accuracy"] == (pixels[0][0].argmax(1) == 0).double().mean().item()
    assert set(evaluate(nn.Identity(), [(torch.ones(2, 3), torch.zeros(2, 3))], nn.MSELoss())) == {"loss"}
    both = [({"input": torch.eye(2)}, torch.tensor([0, 1])), ((torch.eye(2),), torch.tensor([0, 0]))]
    assert evaluate(nn.Identity(), both, nn.CrossEntropyLoss())["accuracy"] == 0.75


def test_evaluation_refuses_what_it_cannot_average() -> None:
    with pytest.raises(InputError, match="yields no examples"):
        evaluate(nn.Identity(), [], nn.CrossEntropyLoss())
    with pytest.raises(InputError, match="pair"):
        evaluate(nn.Identity(), [torch.eye(2)], nn.CrossEntropyLoss())
    data = [(torch.eye(2), torch.tensor([0, 1]))]
    with pytest.raises(InputError, match="scalar"):
        evaluate(nn.Identity(), data, nn.CrossEntropyLoss(reduction="none"))


# ------------------------------------------------------------------------------------------------- the verdict


def test_measure_joins_the_single_measures() -> None:
    model, x = build("lenet5"), torch.zeros(4, *INPUT_SHAPES["lenet5"])
    found = measure(model, x, latency=False)
    assert found.num_params == num_params(model)
    assert (found.macs, found.nonzero_macs) == (macs(model, x).total, nonzero_macs(model, x))
    assert (found.bytes_in_memory, found.bytes_on_disk) == (bytes_in_memory(model), bytes_on_disk(model))
    assert found.peak_activation_bytes == peak_activation_bytes(model, x)
    assert (found.batch_size, found.device, found.latency_ms) == (4, "cpu", None)
    assert found.theoretical_speedup is found.compression is found.measured_speedup is None
    assert "not timed; compared with nothing" in found.verdict()


def test_a_mask_alone_is_said_to_give_no_speed() -> None:
    dense = build("lenet-300-100")
    masked = copy.deepcopy(dense)
    masked.fc1.weight.data *= torch.rand_like(masked.fc1.weight) < 0.1
    found = measure(masked, torch.zeros(1, *INPUT_SHAPES["lenet-300-100"]), baseline=dense, seconds=0.05)
    assert found.theoretical_speedup == 1
    assert found.compression == pytest.approx(num_params(dense) / num_nonzero(masked))
    assert found.theoretical_nonzero_speedup == pytest.approx(266_200 / found.nonzero_macs)
    assert "1.00× theoretical" in found.verdict()
    assert "measured against eager dense at batch 1 on" in found.verdict()
    assert "dense kernels multiply zeros like any other number: a mask alone gives no speed" in found.verdict()


def example(macs: int, latency_ms: float, num_operators: int = 10, **values: Any) -> Measurement:
    return Measurement(
        num_params=100, num_nonzero=100, sparsity=0.0, macs=macs, nonzero_macs=macs, bytes_in_memory=400,
        bytes_on_disk=500, peak_activation_bytes=100, num_operators=num_operators, batch_size=1, num_threads=2,
        device="cpu", latency_ms=latency_ms, latency_iqr_ms=0.0, quiet_latency_ms=latency_ms,
        call_cost_ms=0.02 * num_operators, **values,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("own", "speedups", "expected"),
    [
        (example(500, 0.5), (1.9, 2.0, 2.1), "because its time follows its MACs."),
        (example(1000, 1.0), (0.99, 1.0, 1.01), "because it does the same multiplications."),
        (example(500, 0.8), (1.2, 1.25, 1.3), "narrower layers fill the processor less, and calling its 10 operators"),
        (example(500, 1.25, 1), (0.7, 0.8, 0.9), "at 0.0004 GMAC/s against 0.001: narrower layers fill"),
        (example(500, 0.3), (3.0, 3.3, 3.5), "smaller tensors move less memory."),
        (example(500, 0.3, 5), (3.0, 3.3, 3.5), "fewer operators are called."),
        (example(500, 0.5), (0.5, 2.0, 4.0), "it was disturbed (0.50 to 4.00 in one run)"),
    ],
)  # fmt: skip
def test_the_verdict_gives_the_reason_that_fits(own: Measurement, speedups: tuple[float, ...], expected: str) -> None:
    found = dataclasses.replace(own, baseline=example(1000, 1.0), baseline_name="eager dense", speedups=speedups)
    ratios = f"{1000 / own.macs:.2f}× theoretical, {speedups[1]:.2f}× measured"
    assert found.verdict().startswith(f"{ratios} against eager dense at batch 1 on 2 threads, ")
    assert expected in found.verdict()

"""The zoo: parameter counts and MACs from the papers, published weights that load, sizes kept in attributes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from topiarist.errors import InputError
from topiarist.models import INPUT_SHAPES, MLP, MODELS, DigitsNet, LeNet5, ResNet, VisionTransformer, build, vgg16_bn
from topiarist.models.resnet import PaddedShortcut
from topiarist.models.vit import Attention

DATA = Path(os.environ.get("TOPIARIST_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))

# Numbers of parameters from He et al. 2016, Liu et al. 2019 and Caffe's LeNet; option B adds the projections.
PARAMS = {
    "lenet-300-100": 266_610,
    "lenet5": 431_080,
    "vgg16_bn": 14_724_042,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "mobilenetv2": 3_504_872 - 990 * 1281,  # torchvision's, with 10 classes in place of 1000
    "resnet20-b": 269_722 + (16 * 32 + 64) + (32 * 64 + 128),
    "resnet56-b": 853_018 + (16 * 32 + 64) + (32 * 64 + 128),
}


@pytest.mark.parametrize("name", PARAMS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in MODELS[name]().parameters()) == PARAMS[name]


@pytest.mark.parametrize(("depth", "macs"), [(20, 40_551_040), (56, 125_485_696)])
def test_resnet_macs_are_the_published_ones(depth: int, macs: int) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        ResNet(depth).eval()(torch.empty(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * macs


@pytest.mark.parametrize("name", MODELS)
def test_every_network_runs_in_both_modes_and_every_parameter_gets_a_gradient(name: str) -> None:
    if name in ("resnet110", "vgg16_bn"):  # the same code as a smaller one
        model: nn.Module = ResNet(8) if name == "resnet110" else vgg16_bn(width=0.125)
    else:
        model = build(name)
    x = torch.randn(2, *INPUT_SHAPES[name])
    with torch.no_grad():
        assert model.eval()(x).shape == (2, 10)
    out = model.train()(x)
    assert out.shape == (2, 10)
    F.cross_entropy(out, torch.tensor([1, 2])).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["my", "mlp", "lenet-300-100", "lenet5", "resnet20", "vit", "vgg16_bn"])
def test_every_network_takes_grey_images_of_another_size(name: str) -> None:
    with torch.device("meta"):
        assert build(name, (1, 28, 28), 7).eval()(torch.empty(2, 1, 28, 28)).shape == (2, 7)


def test_vit_and_my_take_the_digits() -> None:
    with torch.device("meta"):
        for name in ("vit", "my", "mlp"):
            assert build(name, (1, 8, 8)).eval()(torch.empty(2, 1, 8, 8)).shape == (2, 10)


def test_published_resnet20_loads_as_it_is() -> None:
    path = DATA / "cifar10_resnets" / "resnet20.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is absent (set TOPIARIST_DATA)")
    state = load_file(path)
    model = ResNet(20, "A")
    model.load_state_dict(state, strict=True)
    own = {k for k in model.state_dict() if not k.endswith("num_batches_tracked")}
    assert own == set(state)
    assert torch.equal(model.layer3[2].conv2.weight, state["layer3.2.conv2.weight"])


def _padded_shortcut_oracle(x: np.ndarray, num_out: int) -> np.ndarray:
    batch, num_in, h, w = x.shape
    out = np.zeros((batch, num_out, h // 2, w // 2))
    before = (num_out - num_in) // 2
    for c in range(num_in):
        for i in range(h // 2):
            for j in range(w // 2):
                out[:, before + c, i, j] = x[:, c, 2 * i, 2 * j]
    return out


def test_option_a_shortcut_against_a_loop() -> None:
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    expected = _padded_shortcut_oracle(x.numpy(), 8)
    assert np.array_equal(PaddedShortcut(3, 8, 2)(x).numpy(), expected)
    sabotaged = PaddedShortcut(3, 8, 2)
    sabotaged.pad_before, sabotaged.pad_after = sabotaged.pad_after, sabotaged.pad_before
    assert not np.array_equal(sabotaged(x).numpy(), expected)


def _attention_oracle(attention: Attention, x: Tensor) -> np.ndarray:
    """Head by head, token by token, in NumPy."""
    weight, bias = attention.qkv.weight.detach().numpy(), attention.qkv.bias.detach().numpy()
    heads, d = attention.num_heads, attention.head_dim
    out = np.zeros((x.shape[0], x.shape[1], heads * d))
    for b, tokens in enumerate(x.numpy()):
        projected = tokens @ weight.T + bias
        for h in range(heads):
            q, k, v = (projected[:, (part * heads + h) * d : (part * heads + h + 1) * d] for part in range(3))
            scores = np.exp(q @ k.T / np.sqrt(d))
            out[b, :, h * d : (h + 1) * d] = scores / scores.sum(1, keepdims=True) @ v
    return np.asarray(out @ attention.proj.weight.detach().numpy().T + attention.proj.bias.detach().numpy())


def test_attention_against_numpy_and_torch() -> None:
    torch.manual_seed(0)
    attention, x = Attention(12, 3).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    expected = _attention_oracle(attention, x)
    np.testing.assert_allclose(attention(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    attention.scale *= 1.1
    assert not np.allclose(attention(x).detach().numpy(), expected, rtol=1e-6)


def test_sizes_are_module_attributes() -> None:
    """Fewer heads, a narrower head and narrower layers run once the attributes say so: nothing is a literal."""
    model = VisionTransformer(image_size=8, patch_size=4, dim=12, num_heads=3, depth=1)
    attention = model.blocks[0].attn
    attention.num_heads, attention.head_dim = 2, 3
    attention.qkv, attention.proj = nn.Linear(12, 3 * 6), nn.Linear(6, 12)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    net = DigitsNet()
    net.block1.conv1, net.block1.bn1 = nn.Conv2d(16, 5, 3, padding=1), nn.BatchNorm2d(5)
    net.block1.conv2 = nn.Conv2d(5, 16, 3, padding=1)
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_bad_sizes_are_refused() -> None:
    for make in (
        lambda: MLP(3),
        lambda: MLP(3, 0),
        lambda: LeNet5(image_size=8),
        lambda: ResNet(21),
        lambda: ResNet(20, "C"),
        lambda: VisionTransformer(dim=10, num_heads=3),
        lambda: VisionTransformer(image_size=30),
    ):
        with pytest.raises(InputError):
            make()
    with pytest.raises(InputError, match="nearest: resnet32, resnet20"):
        build("resnet21")

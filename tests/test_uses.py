"""What weights are multiplied by, against forward hooks, NumPy and autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from topiarist.errors import InputError
from topiarist.stats import Gram, Moments, Watch, collect_inputs


def uses(model, *inputs):
    found = []
    with torch.no_grad(), Watch(model, found.append):
        out = model(*inputs)
    return found, out


class Written(nn.Module):
    """Products that no module of torch makes: a matrix from the left, one that is not transposed, a stack."""

    def __init__(self):
        super().__init__()
        self.left = nn.Parameter(torch.randn(5, 4))
        self.right = nn.Parameter(torch.randn(4, 3))
        self.stack = nn.Parameter(torch.randn(2, 3, 3))

    def forward(self, x):  # (rows, 4)
        y = x @ self.right
        z = self.left @ x.T
        return y, z, torch.bmm(torch.stack([y, -y]), self.stack)


@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4)])
def test_linear_layers_show_what_comes_in(shape):
    layer, x = nn.Linear(4, 3), torch.randn(shape)
    found, _ = uses(layer, x)
    assert [(u.weight, u.in_dim) for u in found] == [("weight", 1)]
    torch.testing.assert_close(found[0].rows()[:, 0], x.reshape(-1, 4), rtol=0, atol=0)


def test_products_written_by_hand_are_seen():
    torch.manual_seed(0)
    x = torch.randn(7, 4)
    model = Written()
    found = {u.weight: u for u in uses(model, x)[0]}
    assert {n: u.in_dim for n, u in found.items()} == {"right": 0, "left": 1, "stack": 1}
    assert torch.equal(found["right"].features()[:, 0], x)
    assert torch.equal(found["left"].features()[:, 0], x)
    assert found["stack"].features().shape == (7, 2, 3)  # rows, groups, features


def test_attention_of_torch_is_seen_inside():
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 3, 8)
    for need_weights in (True, False):
        names = [u.weight for u in uses(nn.ModuleDict({"a": attention})["a"], x, x, x + 1)[0]]
        assert names.count("in_proj_weight") >= 1
        assert "out_proj.weight" in names, need_weights


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(4, 6, (3, 1), padding=(0, 2), dilation=(2, 1), groups=2, bias=False),
        nn.Conv1d(4, 4, 3, groups=4, bias=False),
        nn.Conv3d(4, 2, 3, padding="same", bias=False),
    ],
)
def test_patches_times_the_weight_are_the_convolution(conv):
    conv = conv.double()
    x = torch.randn(2, 4, *[7] * len(conv.kernel_size), dtype=torch.float64)
    (use,), out = uses(conv, x)
    rows = use.rows()  # (rows, groups, inputs)
    weight = conv.weight.detach().reshape(conv.groups, -1, rows.shape[2])
    product = torch.einsum("rgi,goi->rgo", rows, weight).flatten(1)
    torch.testing.assert_close(product, out.movedim(1, -1).flatten(0, -2), rtol=1e-12, atol=1e-12)
    wrong = torch.einsum("rgi,goi->rgo", rows.roll(1, 2), weight).flatten(1)
    assert not torch.allclose(wrong, out.movedim(1, -1).flatten(0, -2))


def test_gradients_of_inputs_are_those_of_autograd():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 5)
    ).double()
    x, inputs, found = torch.randn(3, 2, 6, 6, dtype=torch.float64), {}, {}
    for name in ("2", "5", "6"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: args[0].retain_grad() or inputs.__setitem__(f"{name}.weight", args[0])
        )
    with Watch(model, lambda use: None, lambda use: found.__setitem__(use.weight, use)) as watch:
        loss = model(x).square().sum()
        with watch.backward():
            loss.backward()
    assert set(found) == {"2.weight", "5.weight", "6.weight"}  # the image needs no gradient
    for name, use in found.items():
        torch.testing.assert_close(use.gradient, inputs[name].grad, rtol=1e-12, atol=0)
        torch.testing.assert_close(use.inputs, inputs[name], rtol=0, atol=0)


def test_samples_and_positions():
    x = torch.arange(24.0).reshape(2, 3, 4)
    (use,), _ = uses(nn.Linear(4, 1), x)
    assert torch.equal(use.samples(2)[:, 0], x.movedim(1, 2))
    (use,), _ = uses(nn.Conv1d(3, 1, 1), x)
    assert torch.equal(use.samples(2)[:, 0], x)


def test_moments_and_gram_are_those_of_numpy():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    data = [torch.randn(n, 3) + 100 for n in (5, 1, 7)]
    moments, gram = Moments(), Gram()
    collect_inputs(model, data, {"2.weight": moments, "0.weight": gram})
    hidden = model[1](model[0](torch.cat(data))).detach().double().numpy()
    np.testing.assert_allclose(moments.mean[0], hidden.mean(0), rtol=1e-6)
    np.testing.assert_allclose(moments.variance[0], hidden.var(0), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(moments.norm[0], np.linalg.norm(hidden, axis=0), rtol=1e-6)
    np.testing.assert_allclose(moments.magnitude[0], np.abs(hidden).mean(0), rtol=1e-6)
    assert moments.zeros[0].tolist() == (hidden == 0).sum(0).tolist()
    x = torch.cat(data).double().numpy()
    np.testing.assert_allclose(gram.matrix[0], x.T @ x, rtol=1e-12)
    np.testing.assert_allclose(gram.total[0], x.sum(0), rtol=1e-12)
    assert gram.count == moments.count == 13


def test_no_data_is_refused():
    with pytest.raises(InputError, match="no batch"):
        collect_inputs(nn.Linear(1, 1), [], {})

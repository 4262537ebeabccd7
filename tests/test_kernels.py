"""Kernels that are not run again return what running them again would."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import topiarist
from topiarist.graph import kernels
from topiarist.graph.kernels import Kernels
from topiarist.graph.shapes import SHAPES
from topiarist.models import VisionTransformer
from topiarist.testing import zoo


class Checked(TorchDispatchMode):
    """Asks for every operator twice, remembered and anew, and compares shapes, strides, dtypes and storages."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.num_calls = Kernels(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        anew = func(*args, **(kwargs or {}))
        self.num_calls += 1
        remembered = self.kernels(func, args, kwargs or {})
        pairs = list(zip(tree_leaves(anew), tree_leaves(remembered), strict=True))
        for a, b in pairs:
            assert isinstance(a, Tensor) == isinstance(b, Tensor)
            if isinstance(a, Tensor):
                assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device), func
                assert any(a is arg for arg in args) == any(b is arg for arg in args), func
        return anew


def on_meta(name: str) -> tuple[nn.Module, Any]:
    model, inputs = zoo.build(name)
    return model.to("meta"), torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to("meta"), inputs)


def compared(name: str) -> Checked:
    model, inputs = on_meta(name)
    checked = Checked()
    for training in (False, True):
        with torch.no_grad(), checked:
            topiarist.inputs.call(model.train(training), inputs)
    return checked


def runs_on_meta(name: str) -> bool:
    model, inputs = on_meta(name)
    try:
        for training in (False, True):
            topiarist.inputs.call(model.train(training), inputs)
    except Exception:  # control flow that depends on values, say
        return False
    return True


NAMES = [name for name in zoo.ZOO if runs_on_meta(name)]


def test_most_networks_run_on_meta() -> None:
    assert len(NAMES) > 0.8 * len(zoo.ZOO)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_remembered_is_what_a_kernel_returns(name: str) -> None:
    checked = compared(name)
    assert checked.num_calls == 0 or checked.kernels.num_run < checked.num_calls


def test_one_shape_taken_for_another_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(args: Any, kwargs: Any) -> Any:
        key = kernels._exact(args, kwargs)
        return key and tuple(dtype for *_, dtype in key if isinstance(dtype, torch.dtype))

    monkeypatch.setattr(kernels, "_pointwise", forgetful)
    with pytest.raises(AssertionError):
        compared("lenet")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 4), (2, 4, 5), (2, 4, 3, 3)])
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_of_any_shape(dtype: torch.dtype, shape: tuple[int, ...], training: bool) -> None:
    norm = torch.ops.aten.native_batch_norm.default
    remember = Kernels()
    for size in (shape, tuple(2 * n for n in shape)):
        x, c = torch.empty(size, dtype=dtype, device="meta"), torch.empty(size[1], dtype=dtype, device="meta")
        args = (x, c, c, c, c, training, 0.1, 1e-5)
        for a, b in zip(remember(norm, args, {}), norm(*args), strict=True):
            assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
    assert remember.num_run == 0


def _m(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


aten = torch.ops.aten
FORMULAS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "strided": (
        aten.convolution.default,
        (_m(2, 4, 9, 8), _m(6, 4, 3, 2), _m(6), [2, 3], [1, 0], [1, 2], False, [0], 1),
    ),
    "groups": (aten.convolution.default, (_m(2, 4, 9), _m(6, 2, 3), None, [1], [1], [1], False, [0], 2)),
    "halves": (aten.native_layer_norm.default, (*[_m(2, 5, dtype=torch.half), [5]], None, None, 1e-5)),
    "two dimensions": (aten.native_layer_norm.default, (_m(2, 3, 5), [3, 5], _m(3, 5), _m(3, 5), 1e-5)),
    "a transposed factor": (aten.addmm.default, (_m(4), _m(3, 5), _m(4, 5).t())),
    "kept": (aten.mean.dim, (_m(2, 3, 4), [-1, 1], True)),
    "not kept": (aten.mean.dim, (_m(2, 3, 4), [-1, 0])),
    "by channel": (aten.mul.Tensor, (_m(2, 3, 4, 5), _m(2, 3, 1, 1))),
    "a gate": (aten.mul.Tensor, (_m(1, 1, 4, 1), _m(1, 3, 4, 5))),
    "nothing broadcast": (aten.mul.Tensor, (_m(2, 3), _m(2, 3))),
}
UNFIT: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "channels": (aten.convolution.default, (_m(2, 4, 9), _m(6, 4, 3), None, [1], [1], [1], False, [0], 2)),
    "too small": (aten.convolution.default, (_m(2, 4, 2), _m(6, 4, 3), None, [1], [0], [1], False, [0], 1)),
    "another shape": (aten.native_layer_norm.default, (_m(2, 5), [4], None, None, 1e-5)),
    "other factors": (aten.addmm.default, (_m(4), _m(3, 5), _m(4, 5))),
    "no such dimension": (aten.mean.dim, (_m(2, 3), [2])),
    "twice": (aten.mean.dim, (_m(2, 3), [1, -1])),
    "other sizes": (aten.mul.Tensor, (_m(2, 3), _m(2, 2))),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_against_torch(name: str) -> None:
    func, args = FORMULAS[name]
    found, expected = (tree_leaves(call) for call in (Kernels()(func, args, {}), func(*args)))
    assert SHAPES[func](*args) is not None
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)


@pytest.mark.parametrize("name", UNFIT)
def test_what_no_formula_holds_for_is_left_to_torch(name: str) -> None:
    func, args = UNFIT[name]
    assert SHAPES[func](*args) is None
    with pytest.raises((RuntimeError, IndexError)):
        Kernels()(func, args, {})


def test_what_does_not_fit_fails_as_it_always_did() -> None:
    remember, add = Kernels(), torch.ops.aten.add.Tensor
    x = torch.empty(2, 3, device="meta")
    remember(add, (x, x), {})
    with pytest.raises(RuntimeError):
        remember(add, (x, torch.empty(2, 4, device="meta")), {})


def test_values_are_computed_each_time() -> None:
    remember, relu = Kernels(), torch.ops.aten.relu.default
    assert remember(relu, (torch.tensor([1.0]),), {}).item() == 1
    assert remember(relu, (torch.tensor([2.0]),), {}).item() == 2
    assert remember.num_run == 0


def num_kernels(**sizes: int) -> int:
    """How many kernels a trace runs."""
    counted: Counter[str] = Counter()
    original = Kernels.__call__

    def counting(self: Kernels, func: Any, args: Any, kwargs: Any) -> Any:
        before = self.num_run
        out = original(self, func, args, kwargs)
        counted["run"] += self.num_run - before
        return out

    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(Kernels, "__call__", counting)
        topiarist.trace(VisionTransformer(**sizes), torch.zeros(2, 3, 32, 32))
    return counted["run"]


def test_kernels_that_run_do_not_grow_with_width_or_depth() -> None:
    few = num_kernels(dim=32, depth=2, num_hidden=64)
    assert few == num_kernels(dim=128, depth=2, num_hidden=256) == num_kernels(dim=32, depth=6, num_hidden=64)
    assert 0 < few < 60

"""Models in float64, also those that ask for another precision in their code."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from topiarist.held import held_tensors, put_tensor

_LOWER = (torch.float32, torch.float16, torch.bfloat16)
_CASTS = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)


def in_float64(model: nn.Module) -> nn.Module:
    """A copy with parameters, buffers and the tensors in attributes in float64."""
    model = copy.deepcopy(model).double()
    made: dict[int, tuple[Tensor, Tensor]] = {}  # one tensor in two places stays one
    for module in model.modules():
        for path, tensor in held_tensors(module).items():
            if tensor.is_floating_point() and tensor.dtype != torch.float64:
                put_tensor(module, path, made.setdefault(id(tensor), (tensor, tensor.double()))[1])
    return model


def _grouped_product(
    a: Tensor, b: Tensor, *, offs: Tensor | None = None, bias: Tensor | None = None, **_: Any
) -> Tensor:
    """Rows of ``a``, in groups that end at ``offs``, each times its own matrix of ``b``, one group after another."""
    if offs is None or (a.dim(), b.dim()) != (2, 3) or bias is not None:
        raise NotImplementedError("grouped products in float64 are those of a matrix of rows with a stack of matrices")
    ends = [int(end) for end in offs]
    starts = [0, *ends[:-1]]
    products = [a[start:end] @ matrix for start, end, matrix in zip(starts, ends, b, strict=True)]
    return torch.cat([*products, a.new_zeros(len(a) - ends[-1], b.shape[2])])


# What torch has no float64 kernel for, of what it has one for.
_STAND_INS = {
    function: _grouped_product
    for function in (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None))
    if function is not None
}


class _Float64(TorchFunctionMode):
    """Whoever asks for a lower precision gets float64: ``x.float()``, ``x.to(torch.float32)``, ``dtype=torch.half``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = _STAND_INS.get(func, func)
        if func in _CASTS:
            func, args = torch.Tensor.double, args[:1]
        args = tuple(torch.float64 if _is_lower(arg) else arg for arg in args)
        kwargs = {key: torch.float64 if _is_lower(value) else value for key, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


def _is_lower(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value in _LOWER


@contextmanager
def float64_everywhere() -> Iterator[None]:
    """Inside the ``with``, new tensors are float64, and casts to a lower precision are casts to float64.

    Example:
        >>> with float64_everywhere():
        ...     torch.ones(1).float().dtype, torch.zeros(1, dtype=torch.half).dtype
        (torch.float64, torch.float64)
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64():
            yield
    finally:
        torch.set_default_dtype(default)

"""Numbers that are none: refused where they enter, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from topiarist.errors import InputError


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors with NaN or infinite entries, without allocating anything of their size.

    Tensors on the meta device have no entries and pass.

    Raises:
        InputError: naming the first such tensor, and where and what its first such entry is.

    Example:
        >>> check_finite({"fc.weight": torch.tensor([1.0, float("nan")])}, "weights")
        Traceback (most recent call last):
        ...
        topiarist.errors.InputError: weights of 'fc.weight' must be finite, entry 1 is nan; mend or exclude the tensor
    """
    for name, tensor in tensors.items():
        if not tensor.numel() or tensor.is_meta:
            continue
        held = tensor.detach()
        if math.isfinite(held.sum()):  # which no sum with a NaN or an infinity is; that of finite numbers may overflow
            continue
        if not all(map(math.isfinite, torch.aminmax(held))):
            flat = tensor.detach().reshape(-1)
            index = int((~torch.isfinite(flat)).nonzero()[0])
            raise InputError(
                f"{what} of {name!r} must be finite, entry {index} is {flat[index].item()}; mend or exclude the tensor"
            )

"""What a model returns, whatever it is packed in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_DEEPEST = 8
_HOLDS_NONE = (str, bytes, int, float, complex, type, nn.Module)


def tensors_in(out: Any) -> list[Tensor]:
    """Every tensor in ``out``, in order: in tuples, lists, mappings, dataclasses and plain objects, eight levels deep.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> tensors_in({"logits": torch.ones(1), "extra": SimpleNamespace(boxes=[torch.zeros(1)])})
        [tensor([1.]), tensor([0.])]
    """
    return [out] if isinstance(out, Tensor) else _tensors(out, ())


def _tensors(out: Any, above: tuple[int, ...]) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, _HOLDS_NONE) or callable(out) or len(above) == _DEEPEST or id(out) in above:
        return []
    if isinstance(out, Mapping):
        held = list(out.values())
    elif isinstance(out, (tuple, list, set, frozenset)):
        held = list(out)
    else:
        held = list(getattr(out, "__dict__", {}).values())
    return [tensor for item in held for tensor in _tensors(item, (*above, id(out)))]

"""Searches on tensors without values: everything is found, so that what is done with it is seen.

``torch.where(chosen == i)`` has as many rows as tokens chose expert i, which no tensor without values can say. Where a
search asks for the places of an index, all are taken for its places, as if every token had chosen every expert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
_SEARCHES = {
    id(f) for f in (aten.nonzero.default, aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
                    aten._local_scalar_dense.default)
}  # fmt: skip


def is_search(func: Any) -> bool:
    """Whether what an operator returns may hang on what is found."""
    return id(func) in _SEARCHES


def assumed(func: Any, args: Sequence[Any], kwargs: Any, is_sought: Callable[[Tensor], bool]) -> Any:
    """What ``func`` returns where all is found that ``is_sought``; None where it searches nothing of that kind."""
    first = args[0]
    if func is aten.nonzero.default or func is aten._local_scalar_dense.default:
        if not (_is_valueless(first) and is_sought(first)):
            return None
        if func is aten.nonzero.default:
            return torch.empty((first.numel(), first.dim()), dtype=torch.long, device=first.device)
        return True if first.dtype is torch.bool else None
    masks = [i for i in args[1] if i is not None and i.dtype is torch.bool]
    if not masks or not all(_is_valueless(mask) and is_sought(mask) for mask in masks):
        return None
    places: list[Tensor | None] = []
    for index in args[1]:
        found = [] if index is None else [torch.empty(index.numel(), dtype=torch.long, device=index.device)]
        is_mask = index is not None and index.dtype is torch.bool
        places.extend(found * index.dim() if is_mask else [index])
    return func(first, places, *args[2:], **kwargs)


def _is_valueless(tensor: Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor)


class Assuming(TorchDispatchMode):
    """Inside of this, every search on tensors without values finds everything."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here: torch need not wrap each call of the mode so that it is not."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = assumed(func, args, kwargs or {}, lambda tensor: True) if is_search(func) else None
        return func(*args, **(kwargs or {})) if found is None else found

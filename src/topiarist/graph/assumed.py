"""Searches on tensors without values: everything is found, so that what is done with it is seen.

``torch.where(chosen == i)`` has as many rows as tokens chose expert i, which no tensor without values can say. Where a
search asks for the places of an index, all are taken for its places, as if every token had chosen every expert. Where
it asks which indices were chosen at all (``hit.nonzero()``), all are, and in order: what is found has values then, and
a loop over it runs through every expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from topiarist.graph.sizes import source_line

aten = torch.ops.aten
_SEARCHES = {
    id(f) for f in (aten.nonzero.default, aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
                    aten._local_scalar_dense.default)
}  # fmt: skip


class Searches:
    """What operators return that search, in one run; ``is_sought`` says of a tensor whether all of it is found, and
    ``num_hit`` how many indices of an axis can be, None where a tensor is no encoding of those that were chosen."""

    def __init__(self, is_sought: Callable[[Tensor], bool], num_hit: Callable[[Tensor], int | None]) -> None:
        self._is_sought = is_sought
        self._num_hit = num_hit
        self._indices: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensors of indices that were found

    def __call__(self, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
        """What ``func`` returns; None where it is for torch to say."""
        if len(self._indices) and self._are_found(args, kwargs):
            return self._of_found(func, args, kwargs)
        if id(func) not in _SEARCHES:
            return None
        if func is aten.nonzero.default and _is_valueless(args[0]) and (num := self._num_hit(args[0])) is not None:
            with _disable_current_modes():
                found = torch.arange(num)[:, None]
            self._indices[found] = True
            return found
        return _all_of(func, args, kwargs, self._is_sought)

    def is_found(self, tensor: Tensor) -> bool:
        """Whether a tensor holds indices that a search has found, or what follows from nothing but these."""
        return tensor in self._indices

    def _are_found(self, args: Sequence[Any], kwargs: Any) -> bool:
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        return bool(tensors) and all(map(self.is_found, tensors))

    def _of_found(self, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
        with _disable_current_modes():
            out = func(*args, **kwargs)
        for tensor in _tensors(out):
            self._indices[tensor] = True
        return out


def _tensors(out: Any) -> Iterator[Tensor]:
    return (value for value in tree_leaves(out) if isinstance(value, Tensor))


def _all_of(func: Any, args: Sequence[Any], kwargs: Any, is_sought: Callable[[Tensor], bool]) -> Any:
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
    """Inside of this, every search on tensors without values finds everything; ``hits`` are the source lines that
    search for the indices that were chosen, and how many there are that never are."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here: torch need not wrap each call of the mode so that it is not."""
        return False

    def __init__(self, hits: Mapping[str, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.hits = hits
        self.searches = Searches(lambda tensor: True, self._num_hit)

    def _num_hit(self, tensor: Tensor) -> int | None:
        spare = self.hits.get(source_line()) if tensor.dim() == 1 else None
        return None if spare is None else len(tensor) - spare

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = self.searches(func, args, kwargs or {})
        return func(*args, **(kwargs or {})) if found is None else found

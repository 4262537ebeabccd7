"""How many bytes a model takes, in memory and on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from torch import Tensor, nn

from topiarist.io import format as layout
from topiarist.io import save


def bytes_in_memory(model: nn.Module) -> int:
    """The bytes of all parameters and buffers, tied ones once; a zero takes as many as any other number.

    Example:
        >>> bytes_in_memory(nn.Linear(3, 2))
        32
    """
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def bytes_stored(model: nn.Module) -> int:
    """The bytes of tensors that `topiarist.save` stores: bits and values where there are many zeros, tied ones once.

    What else a file holds, names, shapes and attributes, is not counted.

    Example:
        >>> import torch
        >>> layer = nn.Linear(100, 100)
        >>> _ = torch.nn.init.zeros_(layer.weight)
        >>> bytes_stored(layer)  # a bit per weight, and biases of four bytes
        1650
    """
    return StoredSize(model).whole


class StoredSize:
    """What `bytes_stored` is for a model some of whose weights are removed, without removing them.

    Example:
        >>> import torch
        >>> layer = nn.Linear(100, 100)
        >>> StoredSize(layer).with_removed({"weight": torch.ones(10_000, dtype=torch.bool)})
        1650
    """

    def __init__(self, model: nn.Module) -> None:
        held = {name: place.tensor for name, place in layout.places(model).items() if place.tensor is not None}
        first = {id(tensor): name for name, tensor in reversed(held.items())}  # of a tensor, its first name
        self._first = {name: first[id(tensor)] for name, tensor in held.items()}
        self._tensors = {name: held[name] for name in first.values()}
        self._sizes = {name: _encoded(tensor) for name, tensor in self._tensors.items()}
        self._has_zeros = {name: bool((tensor == 0).any()) for name, tensor in self._tensors.items()}

    @property
    def whole(self) -> int:
        """The bytes when nothing is removed."""
        return sum(self._sizes.values())

    def with_removed(self, removed: Mapping[str, Tensor]) -> int:
        """The bytes when entries are zero where ``removed`` (bool, as many as the tensor has, by name) says so."""
        total = self.whole
        for name, gone in removed.items():
            first = self._first[name]
            total += self._size(first, gone) - self._sizes[first]
        return total

    def _size(self, name: str, gone: Tensor) -> int:
        tensor = self._tensors[name]
        if self._has_zeros[name]:
            return _encoded(tensor.detach().masked_fill(gone.to(tensor.device).view(tensor.shape), 0))
        return layout.num_bytes(tensor.numel(), tensor.numel() - int(gone.count_nonzero()), tensor.element_size())


def _encoded(tensor: Tensor) -> int:
    return sum(part.nbytes for part in layout.encode(tensor).values())


def bytes_on_disk(model: nn.Module) -> int:
    """The bytes of the files that `topiarist.save` writes, found by writing them to a temporary folder.

    Raises:
        InputError: the model cannot be saved.

    Example:
        >>> import torch
        >>> dense, zeros = nn.Linear(100, 100), nn.Linear(100, 100)
        >>> _ = torch.nn.init.zeros_(zeros.weight)
        >>> bytes_on_disk(zeros) < 0.2 * bytes_on_disk(dense)
        True
    """
    with tempfile.TemporaryDirectory() as folder:
        return sum(file.stat().st_size for file in save(model, Path(folder)).iterdir())

"""How many bytes a model takes, in memory and on disk."""

from __future__ import annotations

import tempfile
from itertools import chain
from pathlib import Path

from torch import nn

from topiarist.io import save


def bytes_in_memory(model: nn.Module) -> int:
    """The bytes of all parameters and buffers, tied ones once; a zero takes as many as any other number.

    Example:
        >>> bytes_in_memory(nn.Linear(3, 2))
        32
    """
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


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

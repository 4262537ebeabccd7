"""Batches from tensors that lie in memory: shuffled, augmented and normalised a whole batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from topiarist.errors import InputError


class Batches:
    """An in-memory loader of ``(inputs, targets)`` that can be iterated again and again.

    ``inputs`` is (num_samples, …); uint8 images become floats in [0, 1]. The order of epoch e is a function of
    ``seed`` and e alone (`set_epoch` goes back to one), so that a run can be replayed from any step. ``pad`` crops
    images at random after padding them with that many black pixels on each side, ``flip`` mirrors every second one
    left to right (He et al. 2016, section 4.2). ``mean`` and ``std`` normalise each channel: (x − mean) / std.

    Raises:
        InputError: no samples, inputs and targets of different lengths, or an option that does not fit the inputs.

    Example:
        >>> batches = Batches(torch.arange(5.0), torch.arange(5), batch_size=2)
        >>> len(batches), [targets.tolist() for _, targets in batches]
        (3, [[0, 1], [2, 3], [4]])
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int = 128,
        *,
        shuffle: bool = False,
        seed: int = 0,
        pad: int = 0,
        flip: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if len(inputs) == 0 or len(inputs) != len(targets):
            raise InputError(
                f"{len(inputs)} inputs with {len(targets)} targets: one target per input, and at least one"
            )
        if batch_size < 1 or pad < 0:
            raise InputError(f"batch_size must be at least 1 and pad at least 0, got {batch_size} and {pad}")
        if (pad or flip) and inputs.ndim != 4:
            raise InputError(f"pad and flip are for images (num, channels, height, width), got {tuple(inputs.shape)}")
        self.inputs, self.targets, self.batch_size = inputs, targets, batch_size
        self.shuffle, self.seed, self.pad, self.flip = shuffle, seed, pad, flip
        self.mean, self.std = _per_channel("mean", mean, inputs), _per_channel("std", std, inputs)
        self._epoch = 0

    def __len__(self) -> int:
        """The number of batches."""
        return -(-len(self.inputs) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one to be iterated; they count on from there."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence((self.seed, self._epoch)).generate_state(1)[0])
        )
        self._epoch += 1
        order = torch.randperm(len(self.inputs), generator=generator) if self.shuffle else None
        for start in range(0, len(self.inputs), self.batch_size):
            index = slice(start, start + self.batch_size) if order is None else order[start : start + self.batch_size]
            yield self._normalise(self._augment(self.inputs[index], generator)), self.targets[index]

    def examples(self, num: int = 1) -> Tensor:
        """The first ``num`` inputs, normalised and not augmented."""
        return self._normalise(self.inputs[:num])

    def _augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if self.pad:
            height, width = x.shape[2:]
            windows = F.pad(x, (self.pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
            rows, columns = torch.randint(2 * self.pad + 1, (2, len(x)), generator=generator).to(x.device)
            x = windows[torch.arange(len(x), device=x.device), :, rows, columns]
        if self.flip:
            mirrored = torch.rand(len(x), 1, 1, 1, generator=generator).to(x.device) < 0.5
            x = torch.where(mirrored, x.flip(3), x)
        return x

    def _normalise(self, x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            x = x.to(torch.get_default_dtype()).div_(255)
        if self.mean is not None:
            x = x - self.mean
        return x if self.std is None else x / self.std


def _per_channel(name: str, values: Sequence[float] | None, inputs: Tensor) -> Tensor | None:
    if values is None:
        return None
    if inputs.ndim < 2 or len(values) not in (1, inputs.shape[1]):
        raise InputError(f"{name} has {len(values)} values for inputs of shape {tuple(inputs.shape)}; one per channel")
    if name == "std" and min(values) <= 0:
        raise InputError(f"std must be positive, got {list(values)}")
    dtype = inputs.dtype if inputs.is_floating_point() else torch.get_default_dtype()
    return torch.tensor(values, dtype=dtype, device=inputs.device).view(-1, *(1,) * (inputs.ndim - 2))


def first_batch(data: Iterable[Any]) -> Any:
    """The first batch of ``data``.

    Raises:
        InputError: ``data`` cannot be iterated, can be iterated only once, or yields nothing.
    """
    _check_repeatable(data)
    for batch in data:
        return batch
    raise _nothing(data)


def count_batches(data: Iterable[Any]) -> int:
    """How many batches one pass over ``data`` has; without a length they are counted, which takes a pass.

    Raises:
        InputError: ``data`` cannot be iterated, can be iterated only once, or yields nothing.

    Example:
        >>> count_batches([("inputs", "targets")])
        1
    """
    _check_repeatable(data)
    try:
        num_batches = len(data)  # type: ignore[arg-type]
    except TypeError:  # also a DataLoader over a data set without a length
        num_batches = sum(1 for _ in data)
    if num_batches == 0:
        raise _nothing(data)
    return num_batches


def _check_repeatable(data: Iterable[Any]) -> None:
    kind = type(data).__name__
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise InputError(f"data must be an iterable of batches, got {kind}")
    if isinstance(data, Iterator):
        raise InputError(
            f"data is a {kind} that can be iterated only once; try a list of batches, a torch DataLoader or "
            "topiarist.data.Batches"
        )


def _nothing(data: Iterable[Any]) -> InputError:
    return InputError(f"data ({type(data).__name__}) yields no batch; is the data set empty, or drop_last set?")

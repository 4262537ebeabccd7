"""Correlations of channels with one another at a few shifts, by way of their Fourier transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

AT_ONCE = 2**20  # numbers in a temporary


def pieces(x: Tensor, numbers: int) -> tuple[Tensor, ...]:
    """Samples in pieces of about the same size, for which so many numbers a sample are no more than `AT_ONCE`."""
    return torch.tensor_split(x, max(1, min(len(x), math.ceil(len(x) * numbers / AT_ONCE))))


def correlations(maps: Tensor, shifts: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> Tensor:
    """Σ y_a(q) y_b(q + δ) over samples and positions q, y being zero outside: (shifts, groups, channels, channels).

    ``maps`` is (samples, groups, channels, *positions), ``lengths`` how many points the transform has along each axis:
    at least so many as there are positions and the largest |δ| together, so that nothing wraps around. The sum is
    Σ_ω conj(ŷ_a) ŷ_b exp(iωδ) / points, float64.

    Example:
        >>> correlations(torch.tensor([[[[1.0, 2.0, 3.0]]]]), [(0,), (1,)], [4]).flatten().round(decimals=12)
        tensor([14.,  8.], dtype=torch.float64)
    """
    groups, channels = maps.shape[1:3]
    cos, sin = _waves(shifts, lengths, maps.device)  # (shifts, points)
    even = torch.zeros(len(shifts), groups * channels**2, dtype=torch.float64, device=maps.device)
    odd = torch.zeros_like(even)
    size = max(1, AT_ONCE // even.shape[1])
    parts = pieces(maps, 2 * groups * channels * cos.shape[1])
    padded = torch.zeros(*parts[0].shape[:3], *lengths, dtype=torch.float64, device=maps.device)
    place = padded
    for dim in range(3, maps.dim()):
        place = place.narrow(dim, 0, maps.shape[dim])
    for x in parts:
        place[: len(x)] = x
        z = torch.fft.rfftn(padded[: len(x)], dim=tuple(range(3, maps.dim())))
        by_point = torch.view_as_real(z).view(len(x) * groups * channels, -1).T.contiguous()
        by_group = by_point.view(-1, 2, len(x), groups, channels).movedim(3, 1)
        for some in range(0, len(by_group), size):
            part = by_group[some : some + size]  # (points, groups, real and imaginary, samples, channels)
            both = part.flatten(2, 3)
            even.addmm_(cos[:, some : some + size], (both.mT @ both).flatten(1))
            odd.addmm_(sin[:, some : some + size], (part[:, :, 0].mT @ part[:, :, 1]).flatten(1))
    even, odd = (t.view(-1, groups, channels, channels) for t in (even, odd))
    return even - odd + odd.mT


def _waves(shifts: Sequence[tuple[int, ...]], lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of exp(iωδ) / points at the points ω that a real transform keeps: (shifts, points)."""
    *others, last = lengths
    points = torch.cartesian_prod(*(torch.arange(n) for n in (*others, last // 2 + 1))).view(-1, len(lengths))
    turns = torch.zeros(len(shifts), len(points), dtype=torch.float64)
    for axis, length in enumerate(lengths):
        along = torch.tensor([shift[axis] for shift in shifts])
        turns += (along[:, None] * points[:, axis] % length).double() / length
    own = (points[:, -1] == 0) | (2 * points[:, -1] == last)  # others stand for their conjugates too
    weight = torch.where(own, 1.0, 2.0).double() / math.prod(lengths)
    angle = 2 * math.pi * turns
    return (angle.cos() * weight).to(device), (angle.sin() * weight).to(device)

"""Σ x xᵀ over the patches x of a convolution, without writing the patches down.

Entries i and j of the patch at p are y_a(p + t_i) and y_b(p + t_j), values of channels a and b of the input. Summed
over the positions p of outputs, this takes a product for each pair of entries. Summed over all p ∈ ℤᵈ, with y zero
outside, it depends on t_j − t_i alone: it is a correlation of channels, and for these a product for each pair of
channels will do (`topiarist.stats.correlate`). What positions beyond the outputs add to it is counted out: only a few
entries still see the input there. With strides, each phase of the input is a channel of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from topiarist.stats.correlate import correlations, pieces
from topiarist.stats.uses import Use, Window

_TRANSFORM = 300  # products that take as long as the transform of one number
_WRITE = 50  # and as writing down one entry of a patch
_RESULT = 100  # and as keeping one number of a result
_CALL = 4_000_000  # and as beginning with anything
_MUCH = 1e-3  # of the sum over all positions, that over outputs: the difference has all digits but three
_LITTLE = 1e-9  # the difference has few digits
_SMOOTH = 2**60 * 3**40 * 5**30  # lengths of transforms divide it


def gram(use: Use) -> Tensor:
    """Σ x xᵀ over the rows of a use (`Use.rows`): float64 of shape (groups, inputs, inputs).

    Example:
        >>> gram(Use("fc", 1, torch.tensor([[1.0, 2.0], [3.0, 4.0]])))
        tensor([[[10., 14.],
                 [14., 20.]]], dtype=torch.float64)
    """
    if use.window is not None and not use.window.transposed:
        patches = Patches(use, use.window)
        found = patches.gram() if patches.are_cheaper else None
        if found is not None:
            return found
    return direct(use)


def direct(use: Use) -> Tensor:
    """The same, product by product."""
    if use.window is None:
        parts = iter((use.features(),))
    else:
        numbers = use.inputs[:1].numel() * (1 if use.window.transposed else math.prod(use.window.kernel))
        parts = (replace(use, inputs=x.double()).rows() for x in pieces(use.inputs, numbers))
    total = torch.zeros(())
    for part in parts:
        rows = part.double().movedim(1, 0)  # (groups, rows, inputs)
        total = total.baddbmm_(rows.mT, rows) if total.dim() else rows.mT @ rows
    return total


def _time(num_rows: int, groups: int, inputs: int) -> int:
    """How many products take as long as `direct`."""
    return groups * inputs * (num_rows * (inputs + _WRITE) + inputs * _RESULT) + _CALL


@dataclass(frozen=True)
class _Axis:
    """A spatial dimension: ``num`` patches of ``kernel`` entries over ``size`` values between ``padding`` zeros."""

    num: int
    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @cached_property
    def outputs(self) -> range:
        """The positions of outputs."""
        return range(self.num)

    @cached_property
    def positions(self) -> range:
        """Those of outputs, and those at which an entry sees a value."""
        first = -((self.dilation * (self.kernel - 1) - self.padding) // self.stride)
        last = (self.padding + self.size - 1) // self.stride
        return range(min(first, 0), max(last + 1, self.num))

    @cached_property
    def phases(self) -> list[int]:
        """The residues by the stride of the places that entries see."""
        return sorted({i * self.dilation % self.stride for i in range(self.kernel)})

    @cached_property
    def entries(self) -> list[tuple[int, int]]:
        """For each entry which of the phases it sees, and how many strides away from its position."""
        places = [divmod(i * self.dilation, self.stride) for i in range(self.kernel)]
        return [(self.phases.index(phase), shift) for shift, phase in places]

    @cached_property
    def sides(self) -> tuple[int, int]:
        """Zeros before and behind the values that make them whole strides of the padded input."""
        return self.padding % self.stride, -(self.padding + self.size) % self.stride

    @cached_property
    def length(self) -> int:
        """Points of the transform of a phase: so many that no shift wraps around, and a product of 2, 3 and 5."""
        num = (self.size + sum(self.sides)) // self.stride + self.entries[-1][1]
        return next(n for n in range(num, 2 * num) if _SMOOTH % n == 0)

    def seen(self, position: int) -> tuple[int, int, int]:
        """The entries that see values at a position, from and to, and which value it is that the first of them sees."""
        start = position * self.stride - self.padding
        begin = max(0, -(start // self.dilation))
        end = min(self.kernel, -((start - self.size) // self.dilation))
        return begin, end, start + begin * self.dilation


class Patches:
    """Σ x xᵀ over the patches of a convolution's inputs, by correlations of their channels."""

    def __init__(self, use: Use, window: Window) -> None:
        self.use, self.window = use, window
        sizes = use.inputs.shape[2:]
        of = (window.num_positions(sizes), sizes, window.kernel, window.stride, window.padding, window.dilation)
        self.axes = [_Axis(*numbers) for numbers in zip(*of, strict=True)]
        self.channels = use.inputs.shape[1] // window.groups

    @cached_property
    def shifts(self) -> list[tuple[int, ...]]:
        """The differences between two entries, along all axes; one of δ and −δ."""
        along = [sorted({b - a for _, a in axis.entries for _, b in axis.entries}) for axis in self.axes]
        return [shift for shift in product(*along) if shift >= (0,) * len(along)]

    @property
    def are_cheaper(self) -> bool:
        """Whether this takes less time than product by product: products are counted, and what takes time besides."""
        inputs, num, groups = self.channels * math.prod(self.window.kernel), len(self.use.inputs), self.window.groups
        channels = self.channels * math.prod(len(axis.phases) for axis in self.axes)
        points = math.prod(axis.length for axis in self.axes)
        here = num * points * groups * channels * (3 * channels + _TRANSFORM)
        here += groups * (points * channels**2 * (len(self.shifts) + _RESULT) + inputs**2 * _RESULT) + _CALL
        here += sum(_time(num * n, groups, m) for n, m in map(self._size, self._beyond()))
        return here < _time(self.use.num_rows, groups, inputs)

    def gram(self) -> Tensor | None:
        """The sum, float64 (groups, inputs, inputs); None where nearly all of that over all positions is borders'."""
        found, kernel = self._everywhere(), self.window.kernel
        inputs = self.channels * math.prod(kernel)
        matrix = found.view(-1, inputs, inputs)
        every = matrix.diagonal(dim1=1, dim2=2).clone()
        for axis, position in self._beyond():
            begin, end, _ = self.axes[axis].seen(position)
            block = found
            for dim in (2 + axis, 3 + axis + len(kernel)):
                block = block.narrow(dim, begin, end - begin)
            block -= direct(self._strip(axis, position)).view(block.shape)
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        if bool((diagonal >= _MUCH * every).all()):
            return matrix
        squares = self.use.total(self.use.inputs.double().square())
        diagonal.copy_(squares)
        matrix.mul_((squares != 0)[:, :, None]).mul_((squares != 0)[:, None])  # zero, and not nearly so
        return None if bool(((squares > 0) & (squares < _LITTLE * every)).any()) else matrix

    def _everywhere(self) -> Tensor:
        """The sum over all positions: (groups, channels, *kernel, channels, *kernel)."""
        half = correlations(self._phases(), self.shifts, [axis.length for axis in self.axes])
        every = torch.cat((half, half.mT))  # for δ and −δ
        num_phases = every.shape[2] // self.channels
        every = every.reshape(*every.shape[:2], self.channels, num_phases, self.channels, num_phases)
        number = {shift: n for n, shift in enumerate(self.shifts)}
        number |= {tuple(-d for d in shift): n + len(number) for shift, n in number.items() if any(shift)}
        phases = product(*(range(len(axis.phases)) for axis in self.axes))
        which_phase = {phase: n for n, phase in enumerate(phases)}
        entries = [tuple(zip(*places, strict=True)) for places in product(*(axis.entries for axis in self.axes))]
        phase = torch.tensor([which_phase[own] for own, _ in entries])
        kernel = self.window.kernel
        found = every.new_empty(every.shape[1], self.channels, len(entries), self.channels, len(entries))
        for n, (_, here) in enumerate(entries):
            apart = [tuple(b - a for a, b in zip(here, there, strict=True)) for _, there in entries]
            seen = every[torch.tensor([number[delta] for delta in apart]), :, :, phase[n], :, phase]
            found[:, :, n] = seen.permute(1, 2, 3, 0)
        return found.view(-1, self.channels, *kernel, self.channels, *kernel)

    def _phases(self) -> Tensor:
        """The phases of the input as channels: (samples, groups, channels · phases, *positions)."""
        x = F.pad(self.use.inputs, [side for axis in reversed(self.axes) for side in axis.sides])
        for n, axis in enumerate(self.axes):
            x = x.reshape(*x.shape[: n + 2], -1, axis.stride, *x.shape[n + 3 :]).movedim(n + 3, -1)[..., axis.phases]
        dims = len(self.axes)
        x = x.permute(0, 1, *range(dims + 2, 2 * dims + 2), *range(2, dims + 2))
        num, groups = len(x), self.window.groups
        channels = x[0].numel() // (groups * math.prod(x.shape[dims + 2 :]))
        return x.reshape(num, groups, channels, *x.shape[dims + 2 :])

    def _beyond(self) -> Iterator[tuple[int, int]]:
        """Axes and positions on them where values are seen, but for no output."""
        for number, axis in enumerate(self.axes):
            for position in axis.positions:
                begin, end, _ = axis.seen(position)
                if position not in axis.outputs and begin < end:
                    yield number, position

    def _size(self, beyond: tuple[int, int]) -> tuple[int, int]:
        """How many patches lie there, and how many of their entries see values."""
        along, position = beyond
        begin, end, _ = self.axes[along].seen(position)
        before, behind = self.axes[:along], self.axes[along + 1 :]
        num = math.prod(a.num for a in before) * math.prod(len(a.positions) for a in behind)
        return num, self.channels * (end - begin) * math.prod(a.kernel for a in (*before, *behind))

    def _strip(self, along: int, position: int) -> Use:
        """The patches at one position on an axis: at those of outputs on axes before it, at all on those behind it."""
        begin, end, value = self.axes[along].seen(position)
        window, sides = self.window, []
        kernel, stride = [*window.kernel], [*window.stride]
        kernel[along], stride[along] = end - begin, 1
        for n, axis in enumerate(self.axes):
            places = axis.outputs if n < along else axis.positions
            behind = places[-1] * axis.stride + (axis.kernel - 1) * axis.dilation + 1 - axis.padding - axis.size
            sides.append((0, 0) if n == along else (axis.padding - places[0] * axis.stride, behind))
        x = self.use.inputs.narrow(along + 2, value, (end - begin - 1) * window.dilation[along] + 1)
        x = F.pad(x, [side for pair in reversed(sides) for side in pair])
        moved = replace(window, kernel=tuple(kernel), stride=tuple(stride), padding=(0,) * len(kernel))
        return replace(self.use, inputs=x, window=moved)

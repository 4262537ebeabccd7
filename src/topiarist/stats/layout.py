"""A weight as matrices that rows of inputs are multiplied by, one per group, whatever way it lies in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from topiarist.stats.uses import Use


@dataclass(frozen=True)
class Layout:
    """How a weight of ``shape`` lies: its outputs are ``rows @ matrix.mT`` for the rows of `Use.rows`, group by group.

    ``split`` is the shape with groups, outputs and inputs told apart, ``order`` the dimensions of it in the order
    (groups, outputs…, inputs…), the first ``num_outer`` of which are groups and outputs.
    """

    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    num_outer: int

    @classmethod
    def of(cls, use: Use, shape: tuple[int, ...]) -> Layout:
        """The layout of the weight of a use.

        Example:
            >>> layout = Layout.of(Use("w", 0, torch.zeros(1, 3)), (3, 2))
            >>> layout.matrix(torch.arange(6).view(3, 2))
            tensor([[[0, 2, 4],
                     [1, 3, 5]]])
        """
        dims = tuple(range(len(shape)))
        if use.window is None:
            groups = () if len(shape) == 2 else (0,)
            out_dim = next(d for d in dims if d not in (*groups, use.in_dim))
            split = shape if groups else (1, *shape)
            shift = 0 if groups else 1
            return cls(shape, split, (0, out_dim + shift, use.in_dim + shift), 2)
        split = (use.window.groups, shape[0] // use.window.groups, *shape[1:])
        if use.window.transposed:  # (groups, in, out, *kernel)
            return cls(shape, split, (0, 2, *(d + 1 for d in dims[2:]), 1), len(shape))
        return cls(shape, split, tuple(range(len(split))), 2)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight, or what has its shape, as (groups, outputs, inputs)."""
        parts = weight.reshape(self.split).permute(self.order)
        return parts.reshape(len(parts), math.prod(parts.shape[1 : self.num_outer]), -1)

    def weight(self, matrix: Tensor) -> Tensor:
        """What `matrix` made, in the shape of the weight again."""
        inverse = [self.order.index(d) for d in range(len(self.order))]
        return matrix.reshape([self.split[d] for d in self.order]).permute(inverse).reshape(self.shape)

    def inputs(self, per_input: Tensor) -> Tensor:
        """What is known of each input, (groups, inputs), for every entry of the weight."""
        shape = [self.split[d] for d in self.order]
        outputs = math.prod(shape[1 : self.num_outer])
        return self.weight(per_input[:, None].expand(-1, outputs, -1).contiguous())

    def runs(self, m: int) -> Tensor:
        """Which run of m inputs in a row each input belongs to, for a convolution of channels at one place of its
        kernel: int64 (inputs,).

        Example:
            >>> Layout((1, 5), (1, 1, 5), (0, 1, 2), 2).runs(2).tolist()
            [0, 0, 1, 1, 2]
        """
        first, *places = [self.split[d] for d in self.order[self.num_outer :]]
        num = math.prod(places)
        return (torch.arange(first)[:, None] // m * num + torch.arange(num)).flatten()

    def rows(self) -> Tensor:
        """For every entry of the weight, the number of the output that it belongs to: int64 of its shape."""
        shape = [self.split[d] for d in self.order]
        num = shape[0] * math.prod(shape[1 : self.num_outer])
        inputs = math.prod(shape[self.num_outer :])
        return self.weight(torch.arange(num)[:, None].expand(-1, inputs).contiguous())

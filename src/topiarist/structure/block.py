"""Structure ``block:RxC``: rectangles of a weight matrix (Gray, Radford, Kingma 2017; Narang et al. 2017).

Block-sparse kernels skip whole tiles: what is left is dense inside, so that vector units are busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topiarist.errors import InputError
from topiarist.graph import Axes
from topiarist.graph.matrix import Matrix
from topiarist.plan import Units
from topiarist.structure.base import require_some
from topiarist.structure.entries import Shape, index_over, units_by_entry


@dataclass(frozen=True)
class Block:
    """One unit a tile of ``rows`` outputs × ``cols`` inputs; for a convolution, at one place of the kernel.

    Tiles begin at output 0 and input 0; where the sizes do not divide, those at the edge are smaller.

    Raises:
        InputError: ``rows`` or ``cols`` is no whole number from 1 up.

    Example:
        >>> Block(4, 2).word
        'block:4x2'
    """

    rows: int = 4
    cols: int = 4
    is_physical: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if any(type(size) is not int or size < 1 for size in (self.rows, self.cols)):
            raise InputError(
                f"a block has 1 row and column or more, got {self.rows!r} × {self.cols!r}; try 'block:4x4'"
            )

    @property
    def word(self) -> str:
        """What recipes call it: ``"block:4x4"``."""
        return f"block:{self.rows}x{self.cols}"

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per weight of which it is known what its inputs and outputs are.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or no weight is left.
        """
        tiles = units_by_entry(axes, keep, lambda name, matrix: self._tiles(axes.shape(name), matrix))
        return require_some(tiles, "weight", axes)

    def _tiles(self, shape: Shape, matrix: Matrix) -> Tensor:
        place, row, col = (index_over(shape, dims) for dims in (matrix.others, matrix.outer, matrix.inner))
        row, col = row // self.rows, col // self.cols
        return (place * (row.max() + 1) + row) * (col.max() + 1) + col

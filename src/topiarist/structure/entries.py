"""What the structures that zero entries share: which weights, which entry belongs to which unit, and who is held back.

Every prunable weight is one set of units; `Member.unit` maps its entries, in row-major order, to units. Units that may
not go whatever the budget (the n best of m, the best kernel of a map) are *protected*, which depends on the scores.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from topiarist.errors import InputError, nearest
from topiarist.graph import Axes
from topiarist.graph.matrix import Matrix
from topiarist.plan import Member, Units

Shape = Sequence[int]


def weights_to_cut(axes: Axes, keep: Sequence[str]) -> list[str]:
    """The weights of linear maps and convolutions whose layer matches no pattern of ``keep``.

    Raises:
        InputError: a pattern matches no module.
    """
    for pattern in keep:
        if not fnmatch.filter(axes.modules, pattern):
            raise InputError(f"keep={pattern!r} matches no module ({nearest(pattern, axes.modules)})")
    return [n for n in axes.weights() if not any(fnmatch.fnmatch(n.rpartition(".")[0], p) for p in keep)]


def units_by_entry(axes: Axes, keep: Sequence[str], unit_of: Callable[[str, Matrix], Tensor | None]) -> list[Units]:
    """One set of units per weight: ``unit_of`` maps its name and `Matrix` to the unit of each entry (int64 of its
    shape), or to None where it has no such units."""
    found, matrices = [], axes.matrices()
    for name in weights_to_cut(axes, keep):
        unit = unit_of(name, matrices[name]) if name in matrices else None
        if unit is not None:
            layer = name.rpartition(".")[0]
            member = Member(name, None, unit.flatten())
            found.append(Units(name, int(unit.max()) + 1, (member,), layer, axes.modules.get(layer, "")))
    return found


def zeroed(units: Sequence[Units], removed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which entries of which parameter go with the units that are named: bool, in row-major order."""
    found = {}
    for each in units:
        for member in each.members if each.name in removed else ():
            gone = removed[each.name].cpu()
            found[member.tensor] = gone if member.unit is None else gone[member.unit]
    return found


def index_over(shape: Shape, dims: Sequence[int]) -> Tensor:
    """The row-major index over some dimensions, at every entry: int64 of ``shape``.

    Example:
        >>> index_over((2, 3), [1]).tolist()
        [[0, 1, 2], [0, 1, 2]]
    """
    sizes = [size if dim in dims else 1 for dim, size in enumerate(shape)]
    return torch.arange(math.prod(sizes)).view(sizes).expand(*shape)


def kernel_dims(axes: Axes, name: str) -> tuple[int, ...]:
    """The dimensions of a weight that are the places of a convolution's kernel."""
    matrix = axes.matrices().get(name)
    return () if matrix is None else tuple(d for d in matrix.others if _is_spatial(axes, name, d))


def num_places(axes: Axes, name: str) -> int:
    """How many places the kernel of a weight has."""
    shape = axes.shape(name)
    return math.prod(shape[d] for d in kernel_dims(axes, name))


def _is_spatial(axes: Axes, name: str, dim: int) -> bool:
    leaves = list(axes.graph.leaves(axes.tensors[name].axes[dim]))
    return all(leaf.size == 1 or any(pin.kind == "spatial" for pin in leaf.pins) for leaf in leaves)


def last(tensor: Tensor, shape: Shape, dims: Sequence[int]) -> Tensor:
    """A flat tensor of ``shape`` with some dimensions as the last one: ``(the rest, sizes of dims multiplied)``."""
    order = [d for d in range(len(shape)) if d not in dims] + list(dims)
    return tensor.reshape(tuple(shape)).permute(order).reshape(-1, math.prod(shape[d] for d in dims))


def back(matrix: Tensor, shape: Shape, dims: Sequence[int]) -> Tensor:
    """What `last` made, flat again."""
    order = [d for d in range(len(shape)) if d not in dims] + list(dims)
    inverse = [order.index(d) for d in range(len(shape))]
    return matrix.reshape([shape[d] for d in order]).permute(inverse).reshape(-1)


def best_of_rows(scores: Tensor, num: int, gone: Tensor) -> Tensor:
    """Mark the ``num`` highest of each row that are not gone; among equal ones the later stay, as the first go first.

    Example:
        >>> best_of_rows(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), 2, torch.zeros(1, 4, dtype=torch.bool)).tolist()
        [[False, False, True, True]]
    """
    order = torch.argsort(scores.masked_fill(gone, -torch.inf), dim=1, stable=True)
    mark = torch.zeros_like(gone)
    mark.scatter_(1, order[:, order.shape[1] - num :], torch.ones_like(gone))
    return mark & ~gone


def energy(scores: Tensor) -> Tensor:
    """What adds up when scores are joined: s·|s|, the square of a magnitude, in the order of the scores."""
    scores = scores.double()
    return scores * scores.abs()

"""What hangs on a set of units, in a word that is the same for units of the same kind wherever they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from topiarist.graph import Axes
from topiarist.plan import Member, Units

_NUM_DIMS_WITHOUT_KERNEL = 2


@dataclass(frozen=True, eq=False)
class Roles(Mapping[str, str]):
    """Per units' name, which tensors of which types of layers the units are cut from, and how many times each; worked
    out when asked for.

    The type of a layer is its class and the size of its kernel; widths do not count (Fang et al. 2024: subgraphs are
    isomorphic where the operations and their connections are).
    """

    axes: Axes
    units: Mapping[str, Units]
    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> str:
        return _role(self.axes, _members(self.axes, self.units[name]), self.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.units)

    def __len__(self) -> int:
        return len(self.units)


def _members(axes: Axes, units: Units) -> Iterable[Member]:
    yield from units.members
    for name, _ in units.step:
        yield from axes[name].members


def _role(axes: Axes, members: Iterable[Member], tensors: Mapping[str, Tensor]) -> str:
    found: Counter[str] = Counter()
    for member in members:
        layer, _, leaf = member.tensor.rpartition(".")
        if member.tensor in tensors:
            kernel = "×".join(map(str, tensors[member.tensor].shape[_NUM_DIMS_WITHOUT_KERNEL:]))
            found[f"{axes.modules.get(layer, '')} {kernel} {leaf}:{member.dim}{_shared(member)}"] += 1
    return ", ".join(f"{num} {what}" for what, num in sorted(found.items()))


def _shared(member: Member) -> str:
    """A mark where an index takes several positions, one of each head or each pixel, and where others lie between."""
    if member.unit is None or not member.unit.dim() or not len(member.unit):
        return ""
    num = int((member.unit >= 0).sum())
    times = "*" * (num > int(member.unit.max()) + 1)
    return times + "|" * (num < len(member.unit))

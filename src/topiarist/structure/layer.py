"""Structure ``layer``: depth. A whole module goes and its first input is handed on (Men et al. 2024; Veit et al. 2016).

Residual networks are ensembles of paths: a block without its branch is the identity, so that blocks can leave a trained
network one by one. What can go is seen, not declared: a module whose output has the shape of its first input, and that
makes nothing beside on which others rely (`topiarist.graph.handed`).
"""

from __future__ import annotations

import fnmatch
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from topiarist.errors import InputError, nearest
from topiarist.graph import Axes
from topiarist.plan import Member, Units

_CONTAINERS = {kind.__name__ for kind in (nn.Sequential, nn.ModuleList, nn.ModuleDict)}  # they repeat by accident


@dataclass(frozen=True)
class Layer:
    """One unit a module; of each class one at least stays.

    Candidates return a tensor of the shape and dtype of their first input, alone or first in a tuple, list or dict of
    which the rest can be handed on (`topiarist.graph.handed`): inputs passed through, a state that they are given in
    one place and return in another, and what nobody uses. They multiply by a weight, and are of a class with two or
    more such modules. No candidate lies in another: the outermost are taken, and nothing inside a module of a class
    that has candidates (a block that changes the shape stays whole). Containers do not count, and single layers,
    without modules inside, only where there are no larger ones. `staying` says of others why they stay. The score of a
    layer is the criterion's over all of its parameters.
    """

    is_physical: ClassVar[bool] = True

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per class of layers, in the order of the model.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or no layer can be removed.
        """
        for pattern in keep:
            if not fnmatch.filter(axes.modules, pattern):
                raise InputError(f"keep={pattern!r} matches no module ({nearest(pattern, axes.modules)})")
        stay = staying(axes)
        by_class: dict[str, list[str]] = defaultdict(list)
        for name in candidates(axes):
            if name not in stay and not any(fnmatch.fnmatch(name, pattern) for pattern in keep):
                by_class[axes.modules[name]].append(name)
        least = dict.fromkeys((axes.modules[name] for name in stay), 0)  # of these one stays in any case
        found = [_units(axes, kind, names, least.get(kind, 1)) for kind, names in by_class.items()]
        if not found:
            others = "; ".join(f"{name} stays: {why}" for name, why in stay.items())
            raise InputError(
                "the model has no layer that may go: none that is of a class with two or more, multiplies by a weight, "
                f"and returns the shape of its first input; try structure='channel'{others and f' ({others})'}"
            )
        return found

    def remaining(self, axes: Axes, units: Sequence[Units], removed: Mapping[str, Tensor]) -> Axes:
        """What is left to pay for."""
        return axes.without(gone(units, removed))

    def rewriting(
        self, axes: Axes, units: Sequence[Units], removed: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """The part of a plan that says which modules go, and what they returned."""
        del tensors
        return {"bypassed": {name: axes.bypasses[name] for name in gone(units, removed)}}


def candidates(axes: Axes) -> list[str]:
    """The modules that may go, in the order of the model; none lies in another."""
    return [name for name in _alike(axes) if name not in axes.makers_beside]


def staying(axes: Axes) -> dict[str, str]:
    """Layers that stay though others of their class may go, and why."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for name in candidates(axes):
        by_class[axes.modules[name]].append(name)
    found = {name: axes.makers_beside[name] for name in _alike(axes) if name in axes.makers_beside}
    firsts = (name for names in by_class.values() for name in _first_numbered(axes, names))
    return {
        **dict.fromkeys(firsts, "layers hold their own number, and a cache counts its tokens in the first"),
        **found,
    }


def _alike(axes: Axes) -> list[str]:
    """The outermost modules that could go, were it not for what some of them make beside."""
    busy = {name for cost in axes.costs if cost.tensor is not None for name in cost.modules}
    seen = (*axes.bypasses, *axes.makers_beside)
    able = {n for n in seen if n and n in busy and axes.modules[n] not in _CONTAINERS}
    classes = {axes.modules[name] for name in able if name in axes.bypasses}
    while True:
        found = [name for name in _outermost(axes.modules, classes) if name in able]
        single = {kind for kind, num in Counter(axes.modules[name] for name in found).items() if num == 1}
        if not single:
            break
        classes -= single  # what lies inside is outermost now
    composite = [name for name in found if any(other.startswith(f"{name}.") for other in axes.modules)]
    return composite or found


def _outermost(modules: Mapping[str, str], classes: set[str]) -> list[str]:
    """The modules of these classes that lie in no other of them."""
    found: list[str] = []
    for name, kind in modules.items():
        if kind in classes and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found


def _first_numbered(axes: Axes, names: Sequence[str]) -> list[str]:
    """The layer at place 0 where every one holds its own place in an integer, as those with a cache do."""
    places = {name: int(last) for name in names if (last := name.rpartition(".")[2]).isdigit()}
    held = [
        {path.removeprefix(f"{name}.") for path, value in axes.integers.items()
         if path.startswith(f"{name}.") and value == place}
        for name, place in places.items()
    ]  # fmt: skip
    numbered = len(held) == len(names) and len({*places.values()}) > 1 and bool(set.intersection(*held))
    return [name for name in names if numbered and places[name] == 0]


def gone(units: Sequence[Units], removed: Mapping[str, Tensor]) -> list[str]:
    """The names of the modules that go; sets that are not named stay whole."""
    named = (each for each in units if each.name in removed)
    return [each.modules[i] for each in named for i in removed[each.name].nonzero().flatten().tolist()]


def _units(axes: Axes, kind: str, names: Sequence[str], least: int) -> Units:
    members = tuple(
        Member(tensor, None, torch.tensor(i))
        for i, name in enumerate(names)
        for tensor, info in axes.tensors.items()
        if info.kind == "parameter" and tensor.startswith(f"{name}.")
    )
    return Units(kind, len(names), members, names[0].rpartition(".")[0], kind, minimum=least, modules=tuple(names))

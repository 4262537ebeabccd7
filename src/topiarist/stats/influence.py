"""How much modules turn what runs through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from topiarist.errors import InputError
from topiarist.plan import Units
from topiarist.stats.statistic import Statistic, Subject


class Influence(Statistic):
    """1 − E cos(x, y) of each module that is a unit, x its first input and y its first output: float64 (num units,).

    The mean runs over samples and positions; the vectors lie along the last dimension, or where there are four or more
    along the second, as convolutions have it. Where both vectors are zero the cosine is 1, where one is it is 0.
    """

    reads = "inputs"

    def __init__(self, subject: Subject) -> None:
        self._names = [name for units in subject.units for name in _modules_of(units)]
        self._sums: dict[str, tuple[float, int]] = {}

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        """Look at what goes into the modules and comes out."""
        handles = [
            model.get_submodule(name).register_forward_hook(self._hook(name), with_kwargs=True) for name in self._names
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            del module
            before, after = _first(args) if args else _first(kwargs), _first(out)
            if before is None or after is None or before.shape != after.shape:
                raise InputError(f"{name} does not return what has the shape of its first input: it cannot be left out")
            turned = 1 - _cosine(before.detach().double(), after.detach().double())
            total, num = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + float(turned.sum()), num + turned.numel())

        return look

    def of(self, units: Units) -> Tensor:
        """The influence of each module.

        Raises:
            InputError: units are no modules, or one has not run.
        """
        names = _modules_of(units)
        if not names:
            raise InputError(f"the units of {units.name!r} are no modules; try structure='layer', or saliency='l2'")
        missing = next((name for name in names if name not in self._sums), None)
        if missing is not None:
            raise InputError(f"{missing} has not run on the data; keep it with keep=[{missing!r}]")
        return torch.tensor([total / num for total, num in (self._sums[name] for name in names)], dtype=torch.float64)


def _modules_of(units: Units) -> tuple[str, ...]:
    return tuple(getattr(units, "modules", ()))


def _first(value: Any) -> Tensor | None:
    return next((leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)), None)


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    dim = 1 if x.dim() >= 4 else -1
    lengths = torch.linalg.vector_norm(x, dim=dim), torch.linalg.vector_norm(y, dim=dim)
    product, dot = lengths[0] * lengths[1], (x * y).sum(dim)
    both_zero = (lengths[0] == 0) & (lengths[1] == 0)
    return torch.where(product > 0, dot / product, both_zero.double())

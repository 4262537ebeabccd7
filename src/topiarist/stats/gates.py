"""The gradient of a gate on each unit, example by example: activations times their gradients, where they are used."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.plan import Member, Units
from topiarist.stats.cut import by_unit
from topiarist.stats.statistic import Batch, Statistic, Subject
from topiarist.stats.uses import Use

_MOMENTS = ("batch", "change", "example", "magnitude")


class GateGradients(Statistic):
    """Moments of z_nj = ∂L_n/∂g_j at g = 1, for a gate g_j that multiplies unit j wherever a weight takes it in.

    z_nj = Σ x ∂L/∂x over the uses of unit j as an input of a matrix product or convolution, their positions and the
    features that belong to j: for a loss that is a mean over examples, that of example n alone. `of` gives float64
    tensors of shape (num units,): ``"batch"``, E_B[(mean of z_nj in B)²]; ``"change"``, E_B|mean of z_nj in B|;
    ``"example"``, E_n[z_nj²]; and ``"magnitude"``, E_n |z̄_nj|, where z̄ is the mean over positions and features
    instead of their sum, summed over uses.

    Units that no weight takes in, as queries and keys that only meet one another, have their gate at the weight that
    makes them, where Σ y ∂L/∂y over a batch is Σ w ∂L/∂w + b ∂L/∂b: they have ``"batch"`` and ``"change"`` alone.
    """

    watches = "backward"

    def __init__(self, subject: Subject) -> None:
        self._readers: dict[str, list[tuple[str, int, Tensor]]] = defaultdict(list)
        self._num = {units.name: units.num for units in subject.units}
        self._makers: dict[str, list[Member]] = {}
        self._parameters = subject.parameters
        for units in subject.units:
            makers = [m for m in units.members if m.side == "out"]
            if makers and not any(m.side == "in" for m in units.members):
                bias = None if subject.axes is None else subject.axes.biases.get(makers[0].tensor)
                self._makers[units.name] = [makers[0], *(m for m in units.members if m.tensor == bias)]
            for m in units.members:
                if m.dim is not None and m.unit is not None:
                    self._readers[m.tensor].append((units.name, m.dim, m.unit))
        self._sums: dict[str, Tensor] = {}
        self._means: dict[str, Tensor] = {}
        self._totals: dict[str, dict[str, Tensor]] = {}
        self._size, self._num_examples, self._num_batches = 0, 0, 0

    def on_start(self, size: int) -> None:
        """A new batch begins."""
        self._size = size
        self._sums, self._means = {}, {}

    def on_gradient(self, use: Use) -> None:
        """Add the products of one use to those of its units."""
        readers = [r for r in self._readers.get(use.weight, ()) if r[1] == use.in_dim]
        if not readers or use.gradient is None:
            return
        products, positions = _products(use, self._size)  # (examples, groups, features)
        for name, _, unit in readers:
            flat = products.flatten(1) if len(unit) == products[0].numel() else products.sum(1)
            sums = _by_unit(flat, unit, self._num[name])
            counts = (
                _by_unit(torch.ones_like(flat[:1]), unit, self._num[name])
                * positions
                * (products[0].numel() // flat.shape[1])
            )
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums
            means = sums / counts.clamp(min=1)
            self._means[name] = self._means[name] + means if name in self._means else means

    def on_batch(self, batch: Batch) -> None:
        """From the products of examples to moments."""
        for name, members in self._makers.items():
            signed = torch.stack([self._signed(batch, member, self._num[name]) for member in members]).sum(0)
            totals = self._totals.setdefault(name, {key: torch.zeros_like(signed) for key in ("batch", "change")})
            totals["batch"] += signed.square()
            totals["change"] += signed.abs()
        for name, sums in self._sums.items():
            totals = self._totals.setdefault(name, {})
            found = {
                "batch": sums.sum(0).square(),
                "change": sums.sum(0).abs(),
                "example": (sums * batch.size).square().sum(0),
                "magnitude": (self._means[name] * batch.size).abs().sum(0),
            }
            for key, value in found.items():
                totals[key] = totals[key] + value if key in totals else value
        self._num_examples += batch.size
        self._num_batches = batch.number

    def _signed(self, batch: Batch, member: Member, num: int) -> Tensor:
        """Σ w ∂L/∂w over what each unit has in one tensor: float64 (num units,)."""
        weight = self._parameters[member.tensor].detach().double()
        gradient = batch.gradients.get(member.tensor)
        return by_unit(weight * (0.0 if gradient is None else gradient.double()), member, num).sum(1)

    def of(self, units: Units) -> dict[str, Tensor]:
        """The moments of these units.

        Raises:
            InputError: no weight takes them in.
        """
        if units.name not in self._totals:
            if not units.members:
                return {key: torch.zeros(units.num, dtype=torch.float64) for key in _MOMENTS}
            raise InputError(
                f"no product with a weight takes in or makes the units of {units.name!r}, so no gate stands there; "
                f"try saliency='taylor-weight', or keep={units.layer!r}"
            )
        numbers = {"batch": self._num_batches, "change": self._num_batches}
        return {key: v / numbers.get(key, self._num_examples) for key, v in self._totals[units.name].items()}


def _products(use: Use, size: int) -> tuple[Tensor, float]:
    """Σ x ∂L/∂x over positions: float64 (size, groups, features), and how many positions an example has.

    Rows of a matrix are ordered by example; where they are no multiple of ``size``, they are taken as evenly spread.
    """
    assert use.gradient is not None  # noqa: S101 asked for
    x, gradient = use.inputs, use.gradient
    if use.window is not None:
        found = torch.linalg.vecdot(x.flatten(2), gradient.flatten(2)).double()
        found = found.reshape(len(found), use.window.groups, -1)
        num_rows = x[:, 0].numel()
    else:
        found = use.features(x * gradient).double()
        num_rows = len(found)
    if len(found) != size:
        example = torch.arange(len(found), device=found.device) * size // len(found)
        found = torch.zeros(size, *found.shape[1:], dtype=found.dtype, device=found.device).index_add_(
            0, example, found
        )
    return found, num_rows / size


def _by_unit(values: Tensor, unit: Tensor, num: int) -> Tensor:
    """Sums over the features of each unit: (examples, features) → (examples, num units)."""
    unit = unit.to(values.device)
    if len(unit) == num and torch.equal(unit, torch.arange(num, device=unit.device)):
        return values
    there = unit >= 0
    return values.new_zeros(len(values), num).index_add_(1, unit[there], values[:, there])

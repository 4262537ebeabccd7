"""Statistics of what each weight is multiplied by, streamed over data: moments of features, and their Gram matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from topiarist.plan import Units
from topiarist.stats.collect import OnStep, collect
from topiarist.stats.patch_gram import gram
from topiarist.stats.statistic import Statistic, Subject
from topiarist.stats.uses import Use


class Collector(Protocol):
    """Takes in the uses of one weight, one after another."""

    def add(self, use: Use) -> None:
        """Take in one use."""
        ...


class Moments:
    """Count, mean, variance, mean magnitude and zeros of each feature, over samples and positions.

    All are float64 of shape (groups, features); merging follows Chan, Golub, LeVeque 1979, so that the variance does
    not cancel. ``variance`` is that of the population.

    Example:
        >>> moments = Moments()
        >>> moments.add(Use("fc", 1, torch.tensor([[0.0, 1.0], [0.0, 3.0]])))
        >>> moments.mean, moments.variance, moments.zeros
        (tensor([[0., 2.]], dtype=torch.float64), tensor([[0., 1.]], dtype=torch.float64), tensor([[2, 0]]))
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.magnitude = self._squares = torch.zeros(())
        self.zeros = torch.zeros((), dtype=torch.int64)

    @property
    def variance(self) -> Tensor:
        """The mean square distance from the mean."""
        return self._squares / max(1, self.count)

    @property
    def norm(self) -> Tensor:
        """√ Σ x², over all that was seen."""
        return (self._squares + self.count * self.mean.square()).sqrt()

    def add(self, use: Use) -> None:
        """Take in the features of one use."""
        x, groups = _sums_over(use)
        num = x.numel() // x.shape[1]
        total = self.count + num
        mean = _sums(x) / num
        near = mean.to(x.dtype)[:, None]  # what is left of the mean is taken off the sum of squares below
        scratch = x - near
        squares = _sums(scratch.square_()) - (mean - near[:, 0].double()).square() * num
        magnitude = _sums(torch.abs(x, out=scratch)) / num
        zeros = num - _sums(scratch.sign_()).long()
        mean, squares, magnitude, zeros = (t.view(groups, -1) for t in (mean, squares.clamp_(min=0), magnitude, zeros))
        apart = mean - self.mean
        self._squares = self._squares + squares + apart.square() * (self.count * num / total)
        self.mean = self.mean + apart * (num / total)
        self.magnitude = self.magnitude + (magnitude - self.magnitude) * (num / total)
        self.zeros = self.zeros + zeros
        self.count = total


def _sums_over(use: Use) -> tuple[Tensor, int]:
    """The features of a use as (samples, groups · features, positions), at least in single precision; how many groups.

    Maps stay as they lie; rows of matrices are one sample, and lie as (1, features, rows).
    """
    if use.window is not None:
        x, groups = use.inputs.flatten(2), use.window.groups
    else:
        rows = use.features()
        x, groups = rows.flatten(1).mT[None], rows.shape[1]
    return x.to(torch.promote_types(x.dtype, torch.float32)), groups


def _sums(x: Tensor) -> Tensor:
    """Sums over samples and positions, in double precision from at most 2^16 positions on: (features,)."""
    return torch.stack([part.sum(2).sum(0, dtype=torch.float64) for part in torch.split(x, 1 << 16, dim=2)]).sum(0)


class Gram:
    """Σ x xᵀ over all rows x that a weight is multiplied by: float64 of shape (groups, inputs, inputs).

    ``total`` is Σ x, of shape (groups, inputs), and ``count`` the number of rows. A row is a patch for convolutions.

    Example:
        >>> gram = Gram()
        >>> gram.add(Use("fc", 1, torch.tensor([[1.0, 2.0], [3.0, 4.0]])))
        >>> gram.matrix
        tensor([[[10., 14.],
                 [14., 20.]]], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self.count = 0
        self.matrix = self.total = torch.zeros(())

    def add(self, use: Use) -> None:
        """Take in the rows of one use."""
        product = gram(use)
        self.matrix = self.matrix.add_(product) if self.count else product
        self.total = self.total + use.total()
        self.count += use.num_rows


class Inputs(Statistic):
    """One collector for each weight that the units live in: `Moments` or `Gram` of what it is multiplied by."""

    reads = "inputs"
    watches = "forward"

    def __init__(self, subject: Subject, collector: Callable[[], Collector]) -> None:
        held = {member.tensor for units in subject.units for member in units.members}
        self.collectors = {name: collector() for name in subject.parameters if name in held}

    def on_use(self, use: Use) -> None:
        """Hand the use to the collector of its weight."""
        if use.weight in self.collectors:
            self.collectors[use.weight].add(use)

    def of(self, units: Units) -> dict[str, Collector]:
        """The collectors of the members, by tensor."""
        return {m.tensor: self.collectors[m.tensor] for m in units.members if m.tensor in self.collectors}


def collect_inputs(
    model: nn.Module,
    data: Iterable[Any],
    collectors: Mapping[str, Collector],
    num_batches: int | None = None,
    progress: OnStep | None = None,
) -> None:
    """Run ``model`` over ``data`` and hand each use of the named parameters to its collector.

    The model runs in evaluation mode without gradients and is afterwards as it was, bit for bit. A parameter that no
    matrix product or convolution uses leaves its collector empty.

    Args:
        data: batches ``(inputs, targets)`` or inputs alone, on any device.
        num_batches: stop after that many; None takes all.
        progress: called after each batch with its number, ``"step"``.

    Raises:
        InputError: there are no batches.

    Example:
        >>> moments = Moments()
        >>> collect_inputs(nn.Linear(2, 1), [torch.ones(3, 2), torch.ones(1, 2)], {"weight": moments})
        >>> moments.count
        4
    """
    subject = Subject(model)
    inputs = Inputs(subject, Moments)
    inputs.collectors = dict(collectors)
    collect([inputs], subject, data, None, num_batches, progress)

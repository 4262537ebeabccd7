"""Tensors of the shape of parameters that were made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from topiarist.errors import InputError, nearest
from topiarist.plan import Units
from topiarist.stats.statistic import PerParameter, Subject


@dataclass(frozen=True, eq=False)
class Given:
    """Starts the statistic that is these tensors, by name of the parameter.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> Given({"weight": torch.ones(1, 1)})(Subject(nn.Linear(1, 1))).values
        {'weight': tensor([[1.]])}
    """

    tensors: Mapping[str, Tensor]

    def __call__(self, subject: Subject) -> PerParameter:
        """Check the shapes.

        Raises:
            InputError: a tensor has another shape than its parameter.
        """
        return _Given(subject, self.tensors)


class _Given(PerParameter):
    reads = "nothing"

    def __init__(self, subject: Subject, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            parameter = subject.parameters.get(name)
            if parameter is None or parameter.shape != tensor.shape:
                there = f"of shape {tuple(parameter.shape)}" if parameter is not None else "not there"
                raise InputError(
                    f"got scores of shape {tuple(tensor.shape)} for {name!r}, which is {there} "
                    f"({nearest(name, subject.parameters)})"
                )
        self.names = frozenset(subject.parameters)
        self.values = {name: tensor.detach() for name, tensor in tensors.items()}

    def of(self, units: Units) -> tuple[Tensor, ...]:
        missing = [m.tensor for m in units.members if m.tensor in self.names and m.tensor not in self.values]
        if missing:
            raise InputError(f"there are no scores for {missing[0]!r} ({nearest(missing[0], self.values)})")
        return super().of(units)

"""The scales of units: entries of vectors that activations are multiplied by, such as those of batch norms."""

from __future__ import annotations

from torch import Tensor

from topiarist.errors import InputError
from topiarist.plan import Units
from topiarist.stats.cut import rows_of
from topiarist.stats.statistic import Statistic, Subject


class Scales(Statistic):
    """Found by operator as the model is traced: the weight of a norm, or a vector that a product takes.

    Raises:
        InputError: there is no trace to find them in.
    """

    reads = "nothing"

    def __init__(self, subject: Subject) -> None:
        if subject.axes is None:
            raise InputError("scales are found in a traced model; pass Subject(model, units, axes)")
        self.values = {n: subject.parameters[n].detach() for n in subject.axes.scales if n in subject.parameters}

    def of(self, units: Units) -> tuple[Tensor, ...]:
        """One tensor of shape (num units, entries) per scale of these units.

        Raises:
            InputError: nothing scales them.
        """
        members = [m for m in units.members if m.tensor in self.values]
        if not members and units.members:
            raise InputError(
                f"nothing scales {units.name!r}: no norm and no vector multiplies it; "
                f"try another saliency, or keep={units.layer!r}"
            )
        return rows_of(units, self.values)

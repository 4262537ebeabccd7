"""The mean square of the loss's gradient, over batches or examples: the empirical Fisher matrix's diagonal."""

from __future__ import annotations

from topiarist.stats.examples import output_gradients
from topiarist.stats.row_squares import row_squares
from topiarist.stats.statistic import Batch, PerParameter, Subject


class SquaredGradients(PerParameter):
    """E over batches of (∂ loss / ∂ w)²; zeros where the loss does not reach."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._number = 0

    def on_batch(self, batch: Batch) -> None:
        """Add the squares of a batch's gradients."""
        for name, gradient in batch.gradients.items():
            self.values[name].addcmul_(gradient, gradient)
        self._number = batch.number

    def end(self, turn: int) -> None:
        """From sums to means."""
        for total in self.values.values():
            total /= self._number


class SquaredExampleGradients(PerParameter):
    """E over examples of (∂ ℓ_n / ∂ w)², for a loss that is the mean of ℓ_n over a batch."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._number = 0

    def on_batch(self, batch: Batch) -> None:
        """Add the squares of the gradients of a batch's examples."""
        for name, squares in row_squares(batch, output_gradients(batch)).items():
            self.values[name] += squares
        self._number += batch.size

    def end(self, turn: int) -> None:
        """From sums to means."""
        for total in self.values.values():
            total /= self._number

"""What a gate is: a random factor for each unit, with a probability of being zero that learns."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Gate(nn.Module, ABC):
    """Factors z for ``num`` units; a subclass holds their parameters.

    Each method returns floats of shape ``(num,)``, and autograd goes through the first two.
    """

    @abstractmethod
    def sample(self) -> Tensor:
        """z for one forward pass in training mode."""

    @abstractmethod
    def expected_l0(self) -> Tensor:
        """How likely each z is not zero: P(z ≠ 0), or what stands for it."""

    @abstractmethod
    def deterministic(self) -> Tensor:
        """z in evaluation mode; no gradient goes through."""

    def soft(self) -> Tensor:
        """z in evaluation mode of units that are kept whatever their number; no gradient goes through."""
        return self.deterministic()

    def penalty(self) -> Tensor:
        """What to add to the loss for the gates to close, a scalar: E‖z‖₀ unless the gate has a term of its own."""
        return self.expected_l0().sum()

    def project(self) -> None:
        """Bring the parameters back to where they may be; called after ``optimizer.step()``."""

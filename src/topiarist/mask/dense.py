"""A dense layer with a bit mask in its forward pass, for those who want the multiplication to be seen.

Masks made by `topiarist.mask` add nothing to the forward pass; this layer is the alternative of the literature
(Han et al. 2015; Politi 2021): y = σ((W ⊙ M) x + b), so that autograd multiplies the gradient of W by M as well.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.errors import InputError


class PrunableDense(nn.Module):
    """A linear layer whose weight is multiplied by a bit mask: (…, in_features) → (…, out_features).

    y = σ((W ⊙ M) x + b). ``mask`` is a bool buffer of shape (out_features, in_features), True where a weight stays: it
    is saved in the state dict and moves with ``.to``. ``activation`` σ is a module, or nothing.

    Raises:
        InputError: a mask of another shape, or with values other than 0 and 1.

    Example:
        >>> layer = PrunableDense(2, 1, activation=nn.ReLU())
        >>> layer.set_mask(torch.tensor([[1, 0]]))
        >>> layer.sparsity, layer.weight[0, 1].item()
        (0.5, 0.0)
        >>> layer.fold()
        Sequential(
          (0): Linear(in_features=2, out_features=1, bias=True)
          (1): ReLU()
        )
    """

    bias: nn.Parameter | None
    mask: Tensor

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        linear = nn.Linear(in_features, out_features, bias=bias)
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.activation = activation
        self.register_buffer("mask", torch.ones(out_features, in_features, dtype=torch.bool))

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, mask: Tensor | None = None, activation: nn.Module | None = None
    ) -> PrunableDense:
        """A masked copy of ``linear``, which stays as it is; without ``mask`` every weight stays."""
        with torch.device("meta"):
            new = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, activation=activation)
        new.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=linear.weight.requires_grad)
        if linear.bias is not None:
            new.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=linear.bias.requires_grad)
        new.mask = torch.ones_like(new.weight, dtype=torch.bool)
        if mask is not None:
            new.set_mask(mask)
        return new.train(linear.training)

    @property
    def sparsity(self) -> float:
        """The fraction of weights that the mask removes."""
        return 1 - int(self.mask.sum()) / self.mask.numel()

    @torch.no_grad()
    def set_mask(self, mask: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Take ``mask``, and zero the weights that it removes together with their gradient.

        Momentum and Adam's moments would move the stored weight on for a while: hand in the ``optimizer`` and what it
        remembers of the removed weights is zeroed too.
        """
        if mask.shape != self.weight.shape:
            raise InputError(f"a mask of shape {tuple(mask.shape)} does not fit a weight of {tuple(self.weight.shape)}")
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise InputError("a mask has only the values 0 (goes) and 1 (stays); try scores > threshold")
        self.mask = mask.to(device=self.weight.device, dtype=torch.bool)
        memory: dict[str, Any] = {} if optimizer is None else dict(optimizer.state.get(self.weight, {}))
        for tensor in (self.weight, self.weight.grad, *memory.values()):
            if isinstance(tensor, Tensor) and tensor.shape == self.mask.shape:
                tensor.masked_fill_(~self.mask, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features)."""
        out = F.linear(x, self.weight * self.mask, self.bias)
        return out if self.activation is None else self.activation(out)

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """A plain ``nn.Linear`` with the mask applied for good, followed by the activation where there is one."""
        num_out, num_in = self.weight.shape
        with torch.device("meta"):
            linear = nn.Linear(num_in, num_out, self.bias is not None)
        linear.weight = nn.Parameter(self.weight * self.mask, requires_grad=self.weight.requires_grad)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.clone(), requires_grad=self.bias.requires_grad)
        folded: nn.Module = linear if self.activation is None else nn.Sequential(linear, self.activation)
        return folded.train(self.training)

    def extra_repr(self) -> str:
        num_out, num_in = self.weight.shape
        return f"in_features={num_in}, out_features={num_out}, bias={self.bias is not None}, sparsity={self.sparsity:g}"

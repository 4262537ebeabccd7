"""Two layers in the place of one: W ≈ A · B with few columns, for linear layers and convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from topiarist.errors import InputError

KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SIZES = ("in_features", "out_features", "in_channels", "out_channels")


class Factored(nn.Sequential):
    """A layer of rank r as two: r outputs of its kind without bias, then a linear map (a 1 × 1 convolution) to all
    outputs, with the bias.

    Made by `Factored.of` of a layer and a basis A (outputs, r): B = Aᵀ W, so that A · B is W projected on the span of
    the columns of A where these are orthonormal.

    Example:
        >>> layer = nn.Linear(8, 6)
        >>> Factored.of(layer, torch.linalg.qr(torch.randn(6, 2)).Q)
        Factored(
          (0): Linear(in_features=8, out_features=2, bias=False)
          (1): Linear(in_features=2, out_features=6, bias=True)
        )
    """

    @classmethod
    def of(cls, layer: nn.Module, basis: Tensor) -> Factored:
        """The two layers for ``layer`` and ``basis`` (outputs, r).

        Raises:
            InputError: the layer is neither linear nor a convolution without groups, or the basis does not fit it.
        """
        if type(layer) not in KINDS or getattr(layer, "groups", 1) != 1:
            raise InputError(f"only linear layers and convolutions without groups have a rank, not {layer}")
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)  # noqa: S101 of the stock layers
        if basis.dim() != 2 or len(basis) != len(weight) or not basis.shape[1]:
            raise InputError(f"a basis of shape {tuple(basis.shape)} does not fit {len(weight)} outputs of {layer}")
        basis = basis.detach().to(weight)
        first, second = _pair(layer, basis.shape[1])
        _hold(first, "weight", (basis.T @ weight.detach().flatten(1)).view(-1, *weight.shape[1:]), weight)
        _hold(second, "weight", basis.clone().view(second.weight.shape), weight)  # type: ignore[arg-type]
        if isinstance(bias, Tensor):
            _hold(second, "bias", bias.detach().clone(), bias)
        made = cls(first, second).train(layer.training)
        made.__dict__.update({name: vars(layer)[name] for name in _SIZES if name in vars(layer)})
        return made

    @property
    def rank(self) -> int:
        """How many numbers pass between the two layers."""
        return len(self[0].weight)  # type: ignore[arg-type]

    @classmethod
    def empty(cls, layer: nn.Module, rank: int) -> Factored:
        """Two layers of the right shapes, for weights to come."""
        return cls.of(layer, torch.zeros(len(getattr(layer, "weight", ())), rank))


def projected(weight: Tensor, basis: Tensor) -> Tensor:
    """A (Aᵀ W): what `Factored` multiplies by, in the shape of W."""
    basis = basis.to(weight)
    return (basis @ (basis.T @ weight.flatten(1))).view_as(weight)


def _pair(layer: nn.Module, rank: int) -> tuple[nn.Module, nn.Module]:
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return (
            nn.Linear(layer.in_features, rank, bias=False, device="meta"),
            nn.Linear(rank, layer.out_features, bias=bias, device="meta"),
        )
    own: Any = layer
    options = {name: getattr(own, name) for name in ("stride", "padding", "dilation", "padding_mode")}
    make = type(own)
    return (
        make(own.in_channels, rank, own.kernel_size, bias=False, device="meta", **options),
        make(rank, own.out_channels, 1, bias=bias, device="meta"),
    )


def _hold(layer: nn.Module, name: str, value: Tensor, like: Tensor) -> None:
    layer.register_parameter(name, nn.Parameter(value.contiguous(), requires_grad=like.requires_grad))

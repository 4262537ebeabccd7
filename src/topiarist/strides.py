"""The order in which the dimensions of a tensor lie in memory."""

from __future__ import annotations

from torch import Tensor


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` with its dimensions in the order in which ``like``, of as many, has them: channels last stay last.

    Example:
        >>> import torch
        >>> like = torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last)
        >>> laid_out(torch.zeros(5, 3, 2, 2), like).is_contiguous(memory_format=torch.channels_last)
        True
    """
    if like.is_contiguous():
        return tensor
    strides = like.stride()
    order = sorted(range(like.dim()), key=lambda dim: -strides[dim])
    return tensor.permute(order).contiguous().permute([order.index(dim) for dim in range(like.dim())])

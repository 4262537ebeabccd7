"""What a batch is and how a model is called with it: a tensor, a tuple of positional or a dict of keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from topiarist.errors import InputError


def as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments that ``inputs`` means.

    A mapping is keyword arguments; a tuple or a list (what a DataLoader makes of a tuple) positional ones; anything
    else is the one positional argument.

    Raises:
        InputError: a mapping has keys that are not words.

    Example:
        >>> as_arguments((1, 2)), as_arguments({"ids": 3}), as_arguments("x")
        (((1, 2), {}), ((), {'ids': 3}), (('x',), {}))
    """
    if isinstance(inputs, Mapping):
        for key in inputs:
            if not isinstance(key, str):
                raise InputError(f"a dict of inputs maps names of arguments to values, got the key {key!r}")
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output on ``inputs``, as `as_arguments` reads them.

    Example:
        >>> import torch
        >>> call(nn.Identity(), {"input": torch.ones(2)})
        tensor([1., 1.])
    """
    args, kwargs = as_arguments(inputs)
    return model(*args, **kwargs)


def fresh(inputs: Any) -> Any:
    """The same inputs in tensors of their own, for a model that may write into what it is given.

    Example:
        >>> import torch
        >>> x = torch.ones(2)
        >>> fresh((x, 3))[0].zero_(), x
        (tensor([0., 0.]), tensor([1., 1.]))
    """
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)


def as_batch(batch: Any) -> tuple[Any, Any]:
    """The inputs and targets of one batch.

    Raises:
        InputError: the batch is not a pair.

    Example:
        >>> as_batch(["x", "y"])
        ('x', 'y')
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise InputError(
            f"a batch is a pair (inputs, targets), got a {type(batch).__name__}{size}; data is an iterable of such "
            "pairs, [(inputs, targets)] where there is one"
        )
    return batch[0], batch[1]


def as_scalar(loss: Any) -> Tensor:
    """The loss of a batch as a scalar.

    Raises:
        InputError: it is not one number that depends on parameters.

    Example:
        >>> import torch
        >>> as_scalar(torch.ones(1, requires_grad=True)).shape
        torch.Size([])
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        inside = f"; it holds {[*loss]}: return one of them, or their sum" if isinstance(loss, Mapping) else ""
        raise InputError(f"the loss must be one number that depends on the model's parameters, got {loss!r}{inside}")
    return loss.reshape(())

"""Loss and accuracy over a data set, exact also where the last batch is short."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.errors import InputError
from topiarist.inputs import as_batch, call
from topiarist.measure.quiet import undisturbed


def evaluate(model: nn.Module, data: Iterable[Any], loss: Callable[[Any, Any], Tensor]) -> dict[str, float]:
    """Mean loss and top-1 accuracy of ``model`` over all examples of ``data``, in evaluation mode.

    ``data`` yields pairs (inputs, targets); batches go to the model's device. ``loss(outputs, targets)`` is the mean
    over a batch; means are weighted by the number of examples, so a short last batch counts for what it holds.
    ``accuracy`` is the fraction of targets that the largest output along dimension 1 hits; it is there where targets
    are integers of shape (batch, …) and outputs of shape (batch, classes, …).

    Raises:
        InputError: ``data`` yields nothing or no pairs, or ``loss`` is not a scalar.

    Example:
        >>> batches = [(torch.eye(2), torch.tensor([0, 1])), (torch.eye(2)[:1], torch.tensor([1]))]
        >>> evaluate(nn.Identity(), batches, nn.CrossEntropyLoss())["accuracy"]
        0.6666666666666666
    """
    num_examples = num_targets = num_hits = 0
    total_loss = 0.0
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    with undisturbed(model):
        for batch in data:
            inputs, targets = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(device), as_batch(batch))
            outputs = call(model, inputs)
            value = loss(outputs, targets)
            if not isinstance(value, Tensor) or value.numel() != 1:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InputError(f"loss(outputs, targets) must be a scalar tensor, got {shape}; try reduction='mean'")
            size = len(targets) if isinstance(targets, Tensor) and targets.ndim else 1
            total_loss += float(value) * size
            num_examples += size
            if _are_classes(outputs, targets):
                num_hits += int((outputs.argmax(1) == targets).sum())
                num_targets += targets.numel()
    if not num_examples:
        raise InputError("data yields no examples; a generator is empty the second time, try a list or a DataLoader")
    accuracy = {"accuracy": num_hits / num_targets} if num_targets else {}
    return {"loss": total_loss / num_examples, **accuracy}


def _are_classes(outputs: Any, targets: Any) -> bool:
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or targets.is_floating_point():
        return False
    return outputs.ndim >= 2 and outputs.shape[:1] + outputs.shape[2:] == targets.shape

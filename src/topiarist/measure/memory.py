"""The most memory that the tensors of one call take at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from topiarist.measure.parts import without_data
from topiarist.measure.quiet import run, undisturbed


def peak_activation_bytes(model: nn.Module, example_inputs: Any) -> int:
    """The most bytes that results of operators take at one time during a call in evaluation mode.

    The model of memory: an operator's results are there from when it returns until the last reference to their storage
    goes, and the peak is taken after every operator. Weights, buffers and inputs are not counted, nor is scratch space
    inside an operator; what shares memory counts once.

    Raises:
        TraceError: the model does not run on the example inputs.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 1))
        >>> peak_activation_bytes(net, torch.zeros(1, 4))  # the inputs and outputs of the ReLU
        800
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    with undisturbed(model), _Live((*model.parameters(), *model.buffers(), *tree_leaves(example_inputs))) as live:
        run(model, example_inputs)
    return int(live.peak)


def predicted_peak_bytes(model: nn.Module, example_inputs: Any) -> int:
    """The same from the shapes alone: operators run on fake tensors, which have no data, wherever the model lets them.

    Raises:
        TraceError: the model does not run on the example inputs.

    Example:
        >>> predicted_peak_bytes(nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 1)), torch.zeros(1, 4))
        800
    """
    try:
        with without_data(model, example_inputs) as (copied, inputs):
            return peak_activation_bytes(copied, inputs)
    except Exception:  # whatever needs values that fake tensors do not have
        return peak_activation_bytes(model, example_inputs)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the sizes of the storages that operators made and that are still alive."""

    def __init__(self, given: tuple[Any, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak: int = 0
        self.given = {_key(value) for value in given if isinstance(value, Tensor)}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}  # type: ignore[no-untyped-call]
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and value.layout == torch.strided and _key(value) not in self.given:
                storage = value.untyped_storage()
                self.alive[_key(value)] = (StorageWeakRef(storage), storage.nbytes())  # type: ignore[no-untyped-call]
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)

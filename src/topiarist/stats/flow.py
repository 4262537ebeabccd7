"""The flow through each parameter of a network made linear: no data takes part."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from topiarist.errors import InputError
from topiarist.graph.states import random_states_kept
from topiarist.inputs import call
from topiarist.stats.statistic import PerParameter, Subject


class Flow(PerParameter):
    """∂R/∂|θ| with R = Σ f_|θ|(1): on a copy in double precision whose parameters and buffers lose their signs.

    The copy runs in evaluation mode on one example of ones; inputs of integers, such as tokens, stay as they are.

    Raises:
        InputError: there are no example inputs.
    """

    reads = "nothing"

    def __init__(self, subject: Subject) -> None:
        if subject.example_inputs is None:
            raise InputError("the flow through a network takes example inputs, for their shape")
        work = copy.deepcopy(subject.model).double().eval()
        with torch.no_grad():
            for tensor in (*work.parameters(), *work.buffers()):
                if tensor.is_floating_point():
                    tensor.abs_()
        leaves = {name: p.requires_grad_(True) for name, p in work.named_parameters() if p.is_floating_point()}
        device = next((p.device for p in leaves.values()), torch.device("cpu"))
        with random_states_kept(work), torch.enable_grad():
            outputs = call(work, tree_map_only(Tensor, lambda t: _ones(t).to(device), subject.example_inputs))
            total = sum((t.sum() for t in _floats(outputs)), torch.zeros((), dtype=torch.float64, device=device))
            found = torch.autograd.grad(total, [*leaves.values()], allow_unused=True)
        pairs = zip(leaves.items(), found, strict=True)
        self.values = {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}


def _ones(tensor: Tensor) -> Tensor:
    return torch.ones_like(tensor, dtype=torch.float64)[:1] if tensor.is_floating_point() else tensor[:1]


def _floats(outputs: Any) -> list[Tensor]:
    return [t for t in tree_flatten(outputs)[0] if isinstance(t, Tensor) and t.is_floating_point()]

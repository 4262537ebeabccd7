"""Batch-norm recalibration: running statistics measured anew on the pruned model, without training.

With B batches the running mean becomes 1/B Σ_b mean_b and the running variance 1/B Σ_b var_b (each batch's own,
unbiased): torch's cumulative average, ``momentum=None`` (Izmailov et al. 2018; Li et al. 2020, "EagleEye").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from topiarist.data.loader import count_batches
from topiarist.errors import InputError
from topiarist.inputs import call
from topiarist.recover.base import RecoveryContext
from topiarist.recover.train import OnStep, Row, device_of, to_device
from topiarist.stats.collect import inputs_of


@dataclass(frozen=True)
class Recalibrate:
    """Measure batch-norm statistics anew over ``num_batches`` of the data (all by default); no gradient, no labels.

    Raises:
        InputError: no data, or a model without batch norm.
    """

    num_batches: int | None = None

    def __call__(self, model: nn.Module, context: RecoveryContext) -> list[Row]:
        """Recalibrate ``model`` in place."""
        if context.data is None:
            raise InputError("Recalibrate measures batch-norm statistics: it needs data=…; try recover='none'")
        recalibrate(model, context.data, self.num_batches, context.progress)
        return []


@torch.no_grad()
def recalibrate(
    model: nn.Module, data: Iterable[Any], num_batches: int | None = None, progress: OnStep | None = None
) -> None:
    """Measure the running statistics of every batch norm of ``model`` anew, in place.

    Batches are ``(inputs, targets)`` or inputs alone. Only batch norms run in training mode meanwhile (no dropout);
    modes and momenta are as before afterwards, and so are the old statistics if it fails half way.

    Raises:
        InputError: no batch norm with running statistics, or data that yields nothing.

    Example:
        >>> model = nn.BatchNorm1d(1)
        >>> recalibrate(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
        >>> model.running_mean.item(), model.running_var.item(), model.momentum
        (4.0, 2.0, 0.1)
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        raise InputError(f"{type(model).__name__} has no batch norm with running statistics; try recover='none'")
    total = count_batches(data) if num_batches is None else min(num_batches, count_batches(data))
    if total < 1:
        raise InputError(f"num_batches must be at least 1, got {num_batches}")
    device = device_of(model)
    modes = [(module, module.training) for module in model.modules()]
    before = [(norm, norm.momentum, {k: b.clone() for k, b in norm.named_buffers()}) for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        for step, batch in enumerate(islice(data, total)):
            call(model, to_device(inputs_of(batch), device))
            if progress is not None:
                progress({"step": step, "num_steps": total})
    except BaseException:
        for norm, _, buffers in before:
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])
        raise
    finally:
        for norm, momentum, _ in before:
            norm.momentum = momentum
        for module, training in modes:
            module.training = training

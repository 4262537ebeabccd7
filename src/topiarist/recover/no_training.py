"""The tier without training: what data without labels and without gradients can do, and the best of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.errors import InputError
from topiarist.inputs import call
from topiarist.outputs import tensors_in
from topiarist.recover.base import RecoveryContext
from topiarist.recover.compensate import Compensate
from topiarist.recover.recalibrate import recalibrate
from topiarist.recover.reconstruct import Reconstruct, first_batches
from topiarist.recover.train import Row, device_of
from topiarist.stats.preserve import preserved

_JUDGES = 256  # samples, enough to tell the attempts apart


@dataclass(frozen=True)
class NoTraining:
    """`Reconstruct`, or `Compensate` and batch-norm recalibration where these come closer to the dense model's outputs.

    Each works on ``max_samples`` samples and is measured by the relative square error of the outputs over the first 256
    of them; the model stays as it is where both make it worse. The rows are those of the reconstruction, and a last one
    whose ``loss`` is the error of the outputs and ``before`` the one without recovery.

    Raises:
        InputError: no data, or the dense model is not known.
    """

    max_samples: int = 1024

    @torch.no_grad()
    def __call__(self, model: nn.Module, context: RecoveryContext) -> list[Row]:
        """Mend ``model`` in place."""
        data, original, _ = context.compared(self)
        batches = list(first_batches(data, self.max_samples, device_of(model)))
        if not batches:
            raise InputError("the data yielded no batch; is the loader empty, or an iterator that is used up?")
        judging = list(first_batches(data, min(self.max_samples, _JUDGES), device_of(model)))
        wanted = _outputs(original, judging)
        rows: list[Row] = []
        found = [(output_error(model, judging, wanted), _state(model))]
        attempts: tuple[Callable[[], object], ...] = (
            lambda: rows.extend(Reconstruct(self.max_samples)(model, context)),
            lambda: self._adjust(model, context, batches),
        )
        for attempt in attempts:
            _restore(model, found[0][1])
            attempt()
            found.append((output_error(model, judging, wanted), _state(model)))
        error, state = min(found, key=lambda pair: pair[0])
        _restore(model, state)
        return [*rows, {"step": len(rows), "loss": error, "before": found[0][0], "lr": 0.0}]

    def _adjust(self, model: nn.Module, context: RecoveryContext, batches: list[Any]) -> None:
        Compensate(self.max_samples)(model, context)
        if any(m.track_running_stats for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
            recalibrate(model, [(inputs, None) for inputs in batches])


def output_error(model: nn.Module, batches: Iterable[Any], wanted: list[list[Tensor]]) -> float:
    """Σ ‖f(x) − f₀(x)‖² / Σ ‖f₀(x) − mean‖² over all floating-point outputs f₀ that are ``wanted`` for the batches."""
    wrong = size = 0.0
    for found, dense in zip(_outputs(model, batches), wanted, strict=True):
        for a, b in zip(found, dense, strict=True):
            wrong += float((a.double() - b.double()).square().sum())
            size += float((b.double() - b.double().mean()).square().sum())
    return wrong / size if size else wrong


def _outputs(model: nn.Module, batches: Iterable[Any]) -> list[list[Tensor]]:
    with preserved(model):
        model.eval()
        return [[t for t in tensors_in(call(model, inputs)) if t.is_floating_point()] for inputs in batches]


def _state(model: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in (*model.parameters(), *model.buffers())]


def _restore(model: nn.Module, state: list[Tensor]) -> None:
    for tensor, value in zip((*model.parameters(), *model.buffers()), state, strict=True):
        tensor.copy_(value)

"""Distillation: the pruned model is trained to do what the dense one does, with labels or without.

    L = α T² KL(softmax(z_t / T) ‖ softmax(z_s / T)) + β Σ_m mean (f_s − f_t)² + γ Σ_m mean_n ‖q_s/‖q_s‖ − q_t/‖q_t‖‖²
        + τ task(z_s, y)

with logits z of teacher and student (Hinton, Vinyals, Dean 2015), the outputs f of named modules (hints: Romero et al.
2015; no regressor is needed, since a masked model has the widths of the dense one) and their spatial attention
q = Σ_c f_c² for each sample (Zagoruyko and Komodakis 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.data.loader import count_batches
from topiarist.errors import InputError, nearest
from topiarist.inputs import call
from topiarist.outputs import tensors_in
from topiarist.recover.base import RecoveryContext
from topiarist.recover.recipe import TrainingRecipe
from topiarist.recover.train import Row, device_of, to_device, train
from topiarist.stats.collect import inputs_of
from topiarist.stats.preserve import preserved


@dataclass(frozen=True)
class Distil:
    """Train by ``recipe`` towards the dense model; the weights α, β, γ, τ of the losses and the temperature T.

    ``hints`` and ``attention`` name modules (as in ``model.named_modules()``) whose outputs are compared; ``task``
    needs labels and ``loss=…``.

    Raises:
        InputError: no data, no dense model, a module that does not exist, or a task without a loss.

    Example:
        >>> Distil(temperature=2.0).recipe.epochs
        1
    """

    recipe: TrainingRecipe = field(default_factory=lambda: TrainingRecipe(epochs=1, lr=0.01))
    temperature: float = 4.0
    logits: float = 1.0
    hints: Sequence[str] = ()
    hint: float = 1.0
    attention: Sequence[str] = ()
    transfer: float = 1.0
    task: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"the temperature must be positive, got {self.temperature!r}; try 4")

    def __call__(self, model: nn.Module, context: RecoveryContext) -> list[Row]:
        """Train ``model`` in place."""
        data, teacher, _ = context.compared(self)
        task = context.training(self)[1] if self.task else None
        names = [*self.hints, *self.attention]
        with preserved(teacher), _outputs_of(model, names) as student_parts, _outputs_of(teacher, names) as parts:
            teacher.eval()

            def loss(outputs: Any, batch: tuple[Any, Any]) -> Tensor:
                inputs, targets = batch
                with torch.no_grad():
                    wanted = call(teacher, to_device(inputs, device_of(teacher)))
                total = self._loss(outputs, wanted, student_parts, parts)
                return total if task is None else total + self.task * task(outputs, targets)

            return train(model, _WithInputs(data), loss, self.recipe, on_step=context.progress)

    def _loss(self, outputs: Any, wanted: Any, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        total = self.logits * soft_targets(_logits(outputs), _logits(wanted), self.temperature)
        for name in self.hints:
            total = total + self.hint * F.mse_loss(student[name], teacher[name])
        for name in self.attention:
            total = total + self.transfer * attention_transfer(student[name], teacher[name])
        return total


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over all but the last dimension (classes).

    Example:
        >>> z = torch.tensor([[1.0, 2.0]])
        >>> soft_targets(z, z, 4.0).item()
        0.0
    """
    ours, theirs = (z.flatten(0, -2).div(temperature).log_softmax(-1) for z in (student, teacher))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """mean_n ‖q_s/‖q_s‖ − q_t/‖q_t‖‖² with q = Σ_c f_c² at each position, for f of shape (samples, channels, …).

    Example:
        >>> f = torch.rand(2, 3, 4, 4)
        >>> attention_transfer(f, 5 * f).item() < 1e-10
        True
    """
    ours, theirs = (F.normalize(f.square().sum(1).flatten(1), dim=1) for f in (student, teacher))
    return (ours - theirs).square().sum(1).mean()


def _logits(outputs: Any) -> Tensor:
    found = next((t for t in tensors_in(outputs) if t.is_floating_point() and t.dim() >= 2), None)
    if found is None:
        raise InputError("distillation compares logits, (…, classes): the model returns no such tensor")
    return found


@contextmanager
def _outputs_of(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Inside the ``with``, what the named modules returned last."""
    modules, seen = dict(model.named_modules()), dict[str, Tensor]()
    missing = next((name for name in names if name not in modules), None)
    if missing is not None:
        raise InputError(f"{type(model).__name__} has no module {missing!r} ({nearest(missing, modules)})")

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            seen[name] = next(iter(tensors_in(out)))

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in {*names}]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class _WithInputs:
    """The same batches, with the inputs among the targets; labels where there are some."""

    def __init__(self, data: Iterable[Any]) -> None:
        self._data, self._num = data, count_batches(data)

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[Any]:
        for batch in self._data:
            inputs = inputs_of(batch)
            yield inputs, (inputs, None if inputs is batch else batch[1])

    def set_epoch(self, epoch: int) -> None:
        """Passed on to data that have an order for each epoch."""
        if hasattr(self._data, "set_epoch"):
            self._data.set_epoch(epoch)

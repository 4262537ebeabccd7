"""One pass over data for everything that is asked of it; it leaves no trace on the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_map_only

from topiarist.errors import InputError
from topiarist.inputs import as_batch, as_scalar, call
from topiarist.stats.preserve import preserved
from topiarist.stats.statistic import Batch, Loss, Statistic, Subject
from topiarist.stats.uses import Use, Watch

OnStep = Callable[[Mapping[str, float]], None]


def collect(
    statistics: Collection[Statistic],
    subject: Subject,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    num_batches: int | None = None,
    progress: OnStep | None = None,
) -> None:
    """Run the model over ``data`` once for all ``statistics`` together, and again for those that take several passes.

    The model runs in evaluation mode, so that the result depends neither on dropout nor on the other samples of a
    batch, and is afterwards as it was, bit for bit. There is a backward pass only where a statistic reads the loss,
    and one for all of them.

    Args:
        data: batches ``(inputs, targets)`` on any device; inputs alone will do where nothing reads the loss. A loader
            with ``set_epoch`` is put to epoch 0, so that the result is the same each time.
        loss: maps outputs and targets to a scalar.
        num_batches: stop after that many; None takes all.
        progress: called after each batch with its number, ``"step"``.

    Raises:
        InputError: there are no batches, a batch is not a pair, or a loss is not one finite number.

    Example:
        >>> from topiarist.stats import Gradients
        >>> model = nn.Linear(1, 1, bias=False)
        >>> gradients = Gradients(Subject(model))
        >>> collect([gradients], Subject(model), [(torch.ones(1, 1), None)], lambda outputs, targets: outputs.sum())
        >>> gradients.values
        {'weight': tensor([[1.]])}
    """
    reading = [s for s in statistics if s.reads != "nothing"]
    for turn in range(max((s.num_passes for s in reading), default=0)):
        active = [s for s in reading if s.num_passes > turn]
        _one_pass(active, subject, data, loss, num_batches, progress, turn)
        for statistic in active:
            statistic.end(turn)


def _one_pass(
    active: list[Statistic],
    subject: Subject,
    data: Iterable[Any] | None,
    loss: Loss | None,
    num_batches: int | None,
    progress: OnStep | None,
    turn: int,
) -> None:
    model, function = subject.model, loss if any(s.reads == "loss" for s in active) else None
    watch, number, keeps = _watch(model, active), 0, any(s.keeps_graph for s in active)
    with preserved(model), torch.set_grad_enabled(function is not None), ExitStack() as entered:
        entered.enter_context(_differentiable_twice(keeps))
        for statistic in active:
            entered.enter_context(statistic.hooked(model))
        model.eval()
        if function is not None:
            for parameter in subject.parameters.values():
                parameter.requires_grad_(True)
        data = () if data is None else data
        if hasattr(data, "set_epoch"):
            data.set_epoch(0)  # the same batches each time, also where a run was resumed
        for raw in islice(data, num_batches):
            number += 1
            with nullcontext() if watch is None else watch:
                batch = _run(active, subject, raw, function, number, turn, watch, keeps)
                if any(s.watches == "backward" for s in active):
                    _ = batch.gradients
            for statistic in active:
                statistic.on_batch(batch)
            if progress is not None:
                progress({"step": number})
    if not number:
        raise InputError("the data yielded no batch; is the loader empty, or an iterator that is used up?")


@contextmanager
def _differentiable_twice(wanted: bool) -> Iterator[None]:
    """Inside, attention and recurrent layers run by kernels whose backward pass has one of its own."""
    cudnn = torch.backends.cudnn
    with sdpa_kernel(SDPBackend.MATH) if wanted else nullcontext(), cudnn.flags(enabled=not wanted and cudnn.enabled):
        yield


def _watch(model: nn.Module, active: list[Statistic]) -> Watch | None:
    both = [s for s in active if s.watches]
    back = [s for s in active if s.watches == "backward"]

    def on_use(use: Use) -> None:
        for statistic in both:
            statistic.on_use(use)

    def on_gradient(use: Use) -> None:
        for statistic in back:
            statistic.on_gradient(use)

    return Watch(model, on_use, on_gradient if back else None) if both else None


def _run(
    active: list[Statistic],
    subject: Subject,
    raw: Any,
    loss: Loss | None,
    number: int,
    turn: int,
    watch: Watch | None,
    keeps: bool,
) -> Batch:
    device = next((p.device for p in subject.model.parameters()), torch.device("cpu"))
    pair = (inputs_of(raw), None) if loss is None else as_batch(raw)
    inputs, targets = tree_map_only(Tensor, lambda t: t.to(device), pair)
    size = _num_samples(inputs)
    for statistic in active:
        statistic.on_start(size)
    outputs = call(subject.model, inputs)
    value = None if loss is None else _checked(loss(outputs, targets), number)
    return Batch(subject, inputs, targets, outputs, value, loss, size, number, turn, watch, keeps)


def _checked(value: Any, number: int) -> Tensor:
    loss = as_scalar(value)
    if not torch.isfinite(loss):
        raise InputError(f"the loss of batch {number} is {loss.item()}; look at the data and at the model's weights")
    return loss


def _num_samples(inputs: Any) -> int:
    return next((len(t) for t in tree_flatten(inputs)[0] if isinstance(t, Tensor) and t.dim()), 1)


def inputs_of(batch: Any) -> Any:
    """The inputs of a batch that may come with targets: the first of a pair, or all of anything else.

    Example:
        >>> inputs_of(("x", "y")), inputs_of("x")
        ('x', 'x')
    """
    return batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 2 else batch

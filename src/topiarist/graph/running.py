"""Running copies of a model on other tensors, and leaving everything as it was."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from topiarist.graph.copies import model_tensors, named_modules


def twin(tensor: Tensor, shape: tuple[int, ...], device: torch.device | str = "meta") -> Tensor:
    """A tensor like another, of another shape and on another device, without its values."""
    same = shape == tuple(tensor.shape)
    made = torch.empty_like(tensor, device=device) if same else tensor.new_empty(shape, device=device)
    return nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def set_mode(model: nn.Module, training: bool) -> None:
    """What ``model.train(training)`` does; where no module does more, without asking each what a flag is."""
    modules = [module for _, module in named_modules(model)]
    if any(type(module).train is not nn.Module.train or "train" in module.__dict__ for module in modules):
        model.train(training)
        return
    for module in modules:
        if module.__dict__.get("training") is not training:
            module.training = training


@contextmanager
def plain_operators() -> Iterator[None]:
    """Inside the ``with``, no operators run hidden inside of others."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def quiet() -> Iterator[None]:
    """What fails on fake tensors is tried on real ones: torch need not log it."""
    logger = logging.getLogger(FakeTensorMode.__module__)
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


CONSTANT = 16  # fake tensors know the values of such small real ones, and write into them: a batch norm's counter


@contextmanager
def tensors_restored(model: nn.Module, largest: float = math.inf) -> Iterator[None]:
    """Undo what a forward pass writes into the model's tensors of up to ``largest`` entries; touch no others."""
    held = [t for _, t, _ in model_tensors(model) if t.numel() <= largest and not t.is_meta]
    before = {id(t): (t, t._version, t.detach().clone()) for t in held}
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, version, value in before.values():
                if tensor._version != version or not torch.equal(tensor, value):  # batch norms write unannounced
                    tensor.copy_(value)


_CHECKS = ("_verify_batch_size", "_verify_spatial_size")
_OF_SHAPES = tuple(getattr(F, name).__code__ for name in _CHECKS if hasattr(F, name))


def fails_on_any_values(error: Exception) -> bool:
    """Whether a check of torch's refused the shapes of tensors: real ones of these shapes it refuses as well."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_code in _OF_SHAPES


def without_frames(error: Exception) -> Exception:
    """The error and its causes without the frames they came through, which hold every tensor of the run."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error

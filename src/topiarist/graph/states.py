"""What running a model must leave as it was."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from topiarist.graph.copies import model_tensors


@contextmanager
def random_states_kept(model: nn.Module) -> Iterator[None]:
    """Put back the random states of Python, NumPy and torch (CPU, and CUDA where the model lies there)."""
    tensors = model_tensors(model) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    devices = sorted({t.device.index for _, t, _ in tensors if t.is_cuda})
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Inside the ``with``, Python looks for no cycles: what is made there by the thousand stays until the end."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

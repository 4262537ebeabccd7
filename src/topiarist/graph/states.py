"""What a model holds, and what running it must leave as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


def model_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, str]]:
    """Every tensor a model holds: (dotted name, tensor, "parameter", "buffer" or "attribute"); tied ones twice."""
    yield from ((name, p, "parameter") for name, p in model.named_parameters(remove_duplicate=False))
    yield from ((name, b, "buffer") for name, b in model.named_buffers(remove_duplicate=False))
    for module_name, module in model.named_modules():
        for name, value in module.__dict__.items():
            if isinstance(value, Tensor):
                yield (f"{module_name}.{name}" if module_name else name), value, "attribute"


@contextmanager
def random_states_kept(model: nn.Module) -> Iterator[None]:
    """Put back the random states of Python, NumPy and torch (CPU, and CUDA where the model lies there)."""
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)

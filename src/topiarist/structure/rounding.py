"""Which multiples of channels a device computes in: the meaning of ``round_to="auto"``.

========  ==========================  =====================================================================
device    multiple                    because
========  ==========================  =====================================================================
cpu       8                           oneDNN blocks channels by 8, or 16 with AVX-512, and pads what is left
                                      (oneDNN developer guide, "Understanding Memory Formats"); 16 measured
                                      slower at equal budgets, being too coarse (docs/rounding.md)
cuda      16 bytes of the dtype:      tensor cores are efficient at multiples of 16 bytes (NVIDIA, "Matrix
          8 for half precision, 4     Multiplication Background", DU-09799-001, 2.2 Tensor Core
          for single, 16 for int8     Requirements); from the A100 on most so at 128 bytes: round_to=64
mps       8                           SIMD-group matrices are 8 × 8 (Metal Shading Language, 6.7)
========  ==========================  =====================================================================
"""

from __future__ import annotations

import torch
from torch import nn

from topiarist.errors import InputError

_CUDA_BYTES = 16


def multiple(device: torch.device, dtype: torch.dtype) -> int:
    """The multiple of channels that ``device`` computes in, for numbers of ``dtype``.

    Raises:
        InputError: nothing is known of the device.

    Example:
        >>> multiple(torch.device("cuda"), torch.bfloat16)
        8
    """
    if device.type in ("cpu", "mps"):
        return 8
    if device.type == "cuda":
        return max(1, _CUDA_BYTES // dtype.itemsize)
    raise InputError(f"round_to='auto' knows cpu, cuda and mps, the model lies on {device}; try round_to=8")


def multiple_for(model: nn.Module) -> int:
    """The multiple for the device and dtype of a model: those of its largest parameter.

    Raises:
        InputError: the model has no parameters, or nothing is known of its device.
    """
    largest = max(model.parameters(), key=lambda p: p.numel(), default=None)
    if largest is None:
        raise InputError("round_to='auto' goes by the device of the parameters, and the model has none")
    return multiple(largest.device, largest.dtype)

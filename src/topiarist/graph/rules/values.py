"""Operators that hand values on as they are: what they are given as indices stays indices of the same axis."""

from __future__ import annotations

import torch

_aten = torch.ops.aten
_NAMES = (
    "view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "expand", "permute", "transpose", "t",
    "clone", "detach", "alias", "contiguous", "_to_copy", "slice", "select", "lift_fresh", "unbind", "flatten", "split",
)  # fmt: skip
KEEP_VALUES = frozenset(getattr(_aten, name) for name in _NAMES)

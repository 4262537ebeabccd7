"""What a trace leaves as it was: the random states, and whether Python looks for cycles."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import topiarist
from topiarist.errors import TraceError


class Seen(nn.Module):
    """Draws from every generator and notes whether the collector is on; raises if it is told to."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.first, self.fails = nn.Linear(3, 4), fails

    def forward(self, x: Tensor) -> Tensor:
        random.random(), np.random.rand(), torch.rand(1)  # noqa: S311
        WAS_ENABLED.append(gc.isenabled())
        if self.fails:
            raise ValueError("on purpose")
        return self.first(x)


WAS_ENABLED: list[bool] = []


@pytest.fixture(params=[True, False], ids=["enabled", "disabled"])
def collector(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the collector was on before; it is again after the test."""
    WAS_ENABLED.clear()
    if not request.param:
        gc.disable()
    yield request.param
    gc.enable()


@pytest.mark.parametrize("fails", [False, True])
def test_collector_and_generators_are_as_before(collector: bool, fails: bool) -> None:
    model = Seen(fails)
    states = random.getstate(), str(np.random.get_state()), torch.random.get_rng_state()
    if fails:
        with pytest.raises(TraceError, match="on purpose"):
            topiarist.trace(model, torch.zeros(1, 3))
    else:
        topiarist.trace(model, torch.zeros(1, 3))
    assert gc.isenabled() is collector
    assert WAS_ENABLED
    assert not any(WAS_ENABLED)
    assert states[:2] == (random.getstate(), str(np.random.get_state()))
    assert torch.equal(states[2], torch.random.get_rng_state())

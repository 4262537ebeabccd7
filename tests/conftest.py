"""What all tests share: one thread per process, a seed, and where the data sets lie."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: tests of Ctrl-C would wait in vain
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure() -> None:
    """One thread per worker: workers that each use every core wait for one another."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with mnist/, cifar10/, …: TOPIARIST_DATA, or shared/data beside the project."""
    path = Path(os.environ.get("TOPIARIST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no data sets at {path}; name their folder in TOPIARIST_DATA")
    return path

"""What runs a model when it is timed: eager torch, torch.compile, or ONNX Runtime; and the clock."""

from __future__ import annotations

import importlib
import logging
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.benchmark import timer

from topiarist.errors import InputError, TraceError
from topiarist.inputs import as_arguments
from topiarist.plan import EXECUTORS

_SHORTEST_BLOCK_MS = 1.0  # short enough to fit between interruptions, long enough for the clock
_PARTS = 3
_ONNX = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, eq=False)
class Executable:
    """A module made ready to be run on given inputs, again and again, by ``run``."""

    module: nn.Module
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    run: Callable[[], Any]


Clock = Callable[[Executable], float]  # the milliseconds of one run


def prepare(module: nn.Module, inputs: Any, executor: str = "eager") -> Executable:
    """Make ``module``, which is put into evaluation mode, ready to be run on ``inputs`` by ``executor``.

    Raises:
        InputError: the executor is not known, or not installed; the message says what to install.
        TraceError: the executor cannot run the module.

    Example:
        >>> prepare(nn.Linear(2, 3), torch.zeros(1, 2)).run().shape
        torch.Size([1, 3])
    """
    args, kwargs = as_arguments(inputs)
    module.eval()
    makers = dict(zip(EXECUTORS, (_eager, _compiled, _onnxruntime), strict=True))
    if executor not in makers:
        raise InputError(f"no executor is called {executor!r}; there are {', '.join(EXECUTORS)}")
    return Executable(module, (args, kwargs), makers[executor](module, args, kwargs))


def wall_clock(executable: Executable) -> float:
    """The milliseconds of one run, the mean over a block of about a millisecond, after one run that warms up.

    On a GPU the clock waits for the device.
    """
    executable.run()
    once = _block(executable, 1)
    return once if once >= _SHORTEST_BLOCK_MS else _block(executable, round(_SHORTEST_BLOCK_MS / max(once, 1e-6)))


def quiet(times: Sequence[float]) -> float:
    """The first decile: what else the machine does only ever adds time, so the shortest are those it left alone.

    Example:
        >>> quiet([5.0, 1.0, 1.1, 9.0])
        1.0
    """
    return sorted(times)[(len(times) - 1) // 10]


def in_turn(executables: Mapping[str, Executable], clock: Clock, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each, ``rounds`` times, taken in turn, so that what else the machine does hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in executables}
    names = list(executables)
    for i in range(rounds):
        first = i % max(1, len(names))
        for name in names[first:] + names[:first]:
            times[name].append(clock(executables[name]))
    return times


def ratio(times: Sequence[float], baseline: Sequence[float]) -> float:
    """Time / time of the baseline, of each third of the rounds the quiet ones, and of the thirds the median.

    Times of one third were taken side by side, so that a drift of the machine cancels.

    Example:
        >>> ratio([2.0, 9.0, 4.0, 4.0, 3.0, 3.0], [4.0, 4.0, 8.0, 8.0, 6.0, 99.0])
        0.5
    """
    size = max(1, len(times) // _PARTS)
    parts = [slice(i, i + size) for i in range(0, len(times), size)]
    return statistics.median(quiet(times[part]) / quiet(baseline[part]) for part in parts)


def with_batch(inputs: Any, batch: int | None) -> Any:
    """``inputs`` repeated or cut to ``batch`` examples, along the first dimension of all tensors that share its size.

    Example:
        >>> with_batch({"x": torch.zeros(2, 3), "scale": torch.ones(3)}, 5)["x"].shape
        torch.Size([5, 3])
    """
    tensors = [t for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.ndim]
    if batch is None or not tensors:
        return inputs
    size = len(tensors[0])

    def resized(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim or len(value) != size:
            return value
        return value.repeat(-(-batch // size), *[1] * (value.ndim - 1))[:batch]

    return tree_map(resized, inputs)


def _block(executable: Executable, num_runs: int) -> float:
    start = timer()
    for _ in range(num_runs):
        executable.run()
    return 1000 * float(timer() - start) / num_runs


def _eager(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return module(*args, **kwargs)

    return run


def _compiled(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    run = _eager(torch.compile(module), args, kwargs)  # type: ignore[arg-type]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run()
    except Exception as error:  # whatever the compiler raises
        raise TraceError(
            f"torch.compile cannot run {type(module).__name__} ({type(error).__name__}: {error}); on a CPU it needs a "
            "C++ compiler such as g++; or try executor='eager'"
        ) from error
    return run


@contextmanager
def _errors_alone(name: str) -> Iterator[None]:
    """Inside the ``with``, a logger says nothing but errors: an exporter says at each call which libraries it lacks."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _onnxruntime(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    try:
        runtime = [importlib.import_module(name) for name in _ONNX][-1]
    except ImportError as error:
        raise InputError(
            f"executor 'onnxruntime' needs packages ({error}); try pip install {' '.join(_ONNX)}"
        ) from None
    try:
        with warnings.catch_warnings(), _errors_alone("torch.onnx"), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(module, args, kwargs=kwargs, dynamo=True, verbose=False)
            if exported is None:
                raise TypeError("the exporter returned nothing")
            proto = exported.model_proto.SerializeToString()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever the exporter raises
        raise TraceError(
            f"ONNX Runtime cannot run {type(module).__name__} ({type(error).__name__}: {error})"
        ) from error
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    feed = {i.name: t.cpu().numpy() for i, t in zip(session.get_inputs(), tensors, strict=True)}
    return lambda: session.run(None, feed)

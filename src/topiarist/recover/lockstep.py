"""Models that run over several batches at once and halt at chosen operators, so that weights can change in between.

Each batch is a thread of its own, and one runs at a time. What a batch needs to go on is kept between two halts and no
more: one forward pass in all, where starting anew for each layer would cost as many as there are layers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from topiarist.graph.copies import structural_copy
from topiarist.graph.running import plain_operators
from topiarist.graph.states import random_states_kept
from topiarist.inputs import call


class _StoppedError(BaseException):
    """Ends a run half way."""


class Runner:
    """One batch on its way through ``model``: ``kept`` holds the results of the operators numbered ``keep``, and
    ``call`` the operator about to run and its arguments."""

    def __init__(self, model: nn.Module, inputs: Any, keep: Iterable[int]) -> None:
        self.kept: dict[int, Tensor] = {}
        self.call: tuple[Any, tuple[Any, ...]] | None = None
        self.is_done = False
        self._keep = frozenset(keep)
        self._model, self._inputs = structural_copy(model).eval(), inputs  # a forward pass may write into its modules
        self._goal, self._position = (-1, False), (-1, False)
        self._is_stopping = False
        self._error: BaseException | None = None
        self._go, self._halted = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def advance(self, event: int, *, after: bool = False) -> None:
        """Go on until just before operator number ``event``, or just after it; no step back."""
        if self.is_done or self._position >= (event, after):
            return
        self._goal = (event, after)
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._halted.acquire()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the run where it is."""
        self._is_stopping = True
        if self._thread.ident is not None:
            self._go.release()
            self._thread.join()

    def _run(self) -> None:
        try:
            with torch.no_grad(), _Halting(self):
                call(self._model, self._inputs)
        except _StoppedError:
            pass
        except BaseException as error:  # raised again where the run is driven from
            self._error = error
        self.is_done = True
        self._halted.release()

    def before(self, event: int, func: Any, args: tuple[Any, ...]) -> None:
        """Halt here if this is the place."""
        self.call = (func, args)
        self._halt((event, False))

    def behind(self, event: int, out: Any) -> None:
        """Keep the result if it is asked for, and halt here if this is the place."""
        self.call = None
        if event in self._keep:
            self.kept[event] = next(t for t in tree_leaves(out) if isinstance(t, Tensor)).clone()
        self._halt((event, True))

    def _halt(self, position: tuple[int, bool]) -> None:
        self._position = position
        if position == self._goal:
            self._halted.release()
            self._go.acquire()
            if self._is_stopping:
                raise _StoppedError


class _Halting(TorchDispatchMode):
    def __init__(self, runner: Runner) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._runner, self._event = runner, -1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._event += 1
        event = self._event
        self._runner.before(event, func, args)
        out = func(*args, **(kwargs or {}))
        self._runner.behind(event, out)
        return out


@contextmanager
def runners(model: nn.Module, batches: Iterable[Any], keep: Iterable[int]) -> Iterator[list[Runner]]:
    """One `Runner` for each batch of inputs; all have ended when the ``with`` does, and random states are as before."""
    with random_states_kept(model), plain_operators():
        made = [Runner(model, inputs, keep) for inputs in batches]
        try:
            yield made
        finally:
            for runner in made:
                runner.stop()

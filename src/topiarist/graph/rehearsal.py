"""A rehearsal: half of every axis goes, and the smaller model runs on tensors without values.

Python does not let every use of a size be seen: ``0.5 * n``, ``math.log(n)`` and ``len(tensor)`` lose where the number
comes from, and ``if n > 64`` decides unseen. So the numbers that reach operators as values (factors, fill values,
constant tensors) are compared with those of the whole model. Where they differ, or where the smaller model does not
run, the axes at fault are found by halving the cut, and pinned with the source line.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from traceback import clear_frames
from typing import Any, TypeVar
from weakref import ref

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from topiarist.graph import attributes
from topiarist.graph.axis import Axis
from topiarist.graph.copies import model_tensors, structural_copy
from topiarist.graph.groups import Axes
from topiarist.graph.heads import with_free_heads
from topiarist.graph.kernels import Kernels
from topiarist.graph.leaks import evict
from topiarist.graph.reasons import Reason
from topiarist.graph.running import CONSTANT, plain_operators, quiet, set_mode, tensors_restored, twin
from topiarist.graph.sizes import line_of, plain, source_line
from topiarist.graph.states import random_states_kept
from topiarist.inputs import call

_PATIENCE = 60  # runs of one model
_SHORT = 16  # entries of a tensor made of numbers in Python
_SIZES = ("int", "SymInt", "Optional[int]", "Optional[SymInt]", "List[int]", "List[SymInt]", "Device", "bool")
_CONSTANTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.lift.default)


@dataclass(frozen=True)
class Number:
    """Numbers that went into one call of an operator as values, and the source line."""

    operator: str
    values: tuple[float, ...]
    where: str = field(compare=False, default="")


Performance = list[Number]
Steps = Callable[[], AbstractContextManager[Any]]


class Numbers(TorchDispatchMode):
    """Writes down the numbers that operators are called with, and which tensors they make."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here: torch need not wrap each call of the mode so that it is not."""
        return False

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels = kernels
        self.found: Performance = []
        self.made: list[ref[Tensor]] = []

    def end(self, out: Any) -> None:
        """The model has returned ``out``."""

    def let_go(self) -> None:
        """Hold no tensor of the run any more."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self.kernels(func, args, kwargs or {})
        values = numbers_in(func, args, kwargs or {})
        if values:
            self.found.append(Number(func.name(), values, source_line()))
        if isinstance(out, Tensor):
            self.made.append(ref(out))
        else:
            self.made.extend([ref(t) for t in tree_leaves(out) if isinstance(t, Tensor)])
        return out


Listener = TypeVar("Listener", bound=Numbers)
Listen = Callable[[Kernels, Mapping[str, Tensor], Any], Listener]


def numbers_in(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[float, ...]:
    """The numbers in a call of an operator that are values: neither sizes nor dimensions nor flags.

    Example:
        >>> numbers_in(torch.ops.aten.add.Tensor, (torch.ones(2), 0.5), {"alpha": 2})
        (0.5, 2)
        >>> numbers_in(torch.ops.aten.sum.dim_IntList, (torch.ones(2), [0]), {})
        ()
    """
    if func in _CONSTANTS:
        (tensor,) = args
        return tuple(tensor.flatten().tolist()) if tensor.device.type == "cpu" and tensor.numel() <= _SHORT else ()
    positions, names = _places(func)
    given = [args[i] for i in positions if i < len(args)]
    given.extend(kwargs[name] for name in names if name in kwargs)
    return tuple(v if isinstance(v, float) else plain(v) for v in given if isinstance(v, (int, float)))


@functools.cache
def _places(func: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The arguments of an operator that may be numbers: their places and their names."""
    arguments = [(i, a.name) for i, a in enumerate(func._schema.arguments) if str(a.type) not in _SIZES]
    return tuple(i for i, _ in arguments), tuple(name for _, name in arguments)


# ------------------------------------------------------------------------------------------------------ who is at fault


def rehearsed(collect: Callable[[], Axes], traced: Performance, stage: Stage, excused: Collection[int] = ()) -> Axes:
    """The axes that ``collect`` returns once those at fault are pinned; for ``traced`` see `faults`.

    The numbers at the places ``excused`` may follow from sizes.
    """
    axes = collect()

    def perform(sizes: Mapping[Axis, int]) -> Performance:
        return without(stage.perform(axes, sizes), excused)

    while found := faults(axes, without(traced, excused), perform):
        for leaf, reason in found.items():
            axes.graph.pin(leaf, reason)
        axes = collect()
    return axes


def without(performance: Performance, excused: Collection[int]) -> Performance:
    """A performance without the numbers at some places."""
    return [replace(n, values=()) if i in excused else n for i, n in enumerate(performance)]


def faults(axes: Axes, traced: Performance, perform: Callable[[Mapping[Axis, int]], Performance]) -> dict[Axis, Reason]:
    """The axes that cannot be cut by half, with the reason.

    ``traced`` are the numbers of the whole model while it was traced, ``perform`` returns those of one with other sizes
    of its leaves; where these differ, the whole model performs as well, since a traced one may go other ways.
    """
    moves = _moves(axes)
    whole, tried = traced, 0

    def fault(cut: Sequence[Mapping[Axis, int]]) -> Reason | None:
        nonlocal tried
        tried += 1
        return _fault(whole, lambda: perform({leaf: size for move in cut for leaf, size in move.items()}))

    def guilty(cut: Sequence[Mapping[Axis, int]], reason: Reason | None) -> Iterator[tuple[Axis, Reason]]:
        if reason is None:
            return
        if len(cut) == 1 or tried >= _PATIENCE:
            yield from ((leaf, reason) for move in cut for leaf in move)
            return
        parts = cut[: len(cut) // 2], cut[len(cut) // 2 :]
        reasons = [fault(part) for part in parts]
        if reasons == [None, None]:  # only together
            yield from ((leaf, reason) for move in parts[1] for leaf in move)
        for part, why in zip(parts, reasons, strict=True):
            yield from guilty(part, why)

    if not moves or fault(moves) is None:
        return {}
    whole = perform({})
    if _fault(whole, lambda: perform({})) is not None:  # numbers that change by themselves say nothing
        return {}
    return dict(guilty(moves, fault(moves)))


def _moves(axes: Axes) -> list[dict[Axis, int]]:
    """Half of every axis that may shrink: the sizes of what goes together, in the order of the axes."""
    found = []
    for step, most in axes.steps():
        times = max(1, min(most, min(leaf.size // num for leaf, num in step.items()) // 2))
        found.append({leaf: leaf.size - times * num for leaf, num in step.items()})
    return found


def _fault(whole: Performance, perform: Callable[[], Performance]) -> Reason | None:
    """Why a smaller model is not the whole one with less in it, or None."""
    try:
        small = perform()
    except DataDependentOutputException:  # of the smaller tensors no values are known
        return None
    except Exception as error:  # whatever a model may raise
        said = f"the model does not run with less of it ({type(error).__name__}: {str(error)[:200]})"
        return Reason(said, "branch", line_of(error))
    for before, after in zip(whole, small, strict=False):
        if before != after:
            if before.operator == after.operator:
                return Reason("its size becomes a value", "value", after.where)
            return Reason("its size decides what runs", "branch", after.where)
    beyond = [*whole[len(small) :], *small[len(whole) :]]
    return Reason("its size decides what runs", "branch", beyond[0].where) if beyond else None


# ---------------------------------------------------------------------------------------------------- the performances


@dataclass(frozen=True, eq=False)
class Stage:
    """A model that performs on tensors without values: on meta tensors with ``kernels``, without on fake ones.

    ``steps`` makes what to run inside of: `WithoutSteps` where recurrent functions were traced.
    """

    model: nn.Module
    example_inputs: Any
    kernels: Kernels | None
    steps: Steps = nullcontext

    def perform(self, axes: Axes, sizes: Mapping[Axis, int], training: bool = False) -> Performance:
        """The numbers that operators are given when leaves have these sizes."""
        return self.listened(axes, sizes, training, lambda kernels, tensors, inputs: Numbers(kernels)).found

    def listened(self, axes: Axes, sizes: Mapping[Axis, int], training: bool, listen: Listen[Listener]) -> Listener:
        """The same performance for another listener, made of the kernels, the tensors by name and the inputs."""
        if self.kernels is not None:
            return self._on_meta(axes, sizes, training, self.kernels, listen)
        with quiet(), tensors_restored(self.model, CONSTANT), FakeTensorMode(allow_non_fake_inputs=True) as fake:
            inputs = tree_map(lambda x: fake.from_tensor(x) if isinstance(x, Tensor) else x, self.example_inputs)
            tensors = {
                id(t): t if shape == tuple(t.shape) else twin(t, shape, t.device)
                for t, shape in _shapes(self.model, axes, sizes)
            }
            return self._run(axes, sizes, training, tensors, inputs, partial(listen, Kernels()))

    def _on_meta(
        self, axes: Axes, sizes: Mapping[Axis, int], training: bool, kernels: Kernels, listen: Listen[Listener]
    ) -> Listener:
        inputs = tree_map(
            lambda x: torch.empty_like(x, device="meta") if isinstance(x, Tensor) else x, self.example_inputs
        )
        tensors = {id(t): twin(t, shape) for t, shape in _shapes(self.model, axes, sizes)}
        return self._run(axes, sizes, training, tensors, inputs, partial(listen, kernels))

    def _run(
        self, axes: Axes, sizes: Mapping[Axis, int], training: bool, tensors: Mapping[int, Tensor], inputs: Any,
        listen: Callable[[Mapping[str, Tensor], Any], Listener],
    ) -> Listener:  # fmt: skip
        listener = listen({name: tensors[id(t)] for name, t, _ in model_tensors(self.model)}, inputs)
        clone = _smaller(self.model, axes, sizes, tensors)
        del tensors
        set_mode(clone[0], training)
        with random_states_kept(self.model):
            _listen(clone, inputs, listener, self.steps)
        return listener


def _shapes(model: nn.Module, axes: Axes, sizes: Mapping[Axis, int]) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    measured = axes.graph.measuring(sizes)
    for name, tensor, _ in model_tensors(model):
        yield tensor, tuple(map(measured, axes.tensors[name].axes))


def _smaller(model: nn.Module, axes: Axes, sizes: Mapping[Axis, int], tensors: Mapping[int, Tensor]) -> list[nn.Module]:
    """A copy with these tensors by the ids of the model's, and the attributes that follow; in a list, to be taken."""
    clone = with_free_heads(structural_copy(model, tensors))
    for path, value in axes.following(sizes)[0].items():
        attributes.set(clone, path, value)
    return [clone]


def _listen(clone: list[nn.Module], inputs: Any, listener: Numbers, steps: Steps) -> None:
    try:
        with plain_operators(), steps(), listener:
            listener.end(call(clone.pop(), inputs))
    except Exception as error:
        clear_frames(error.__traceback__)  # they hold every tensor of the run
        raise
    finally:  # what the copy kept is gone with it
        listener.let_go()
        evict(listener.made)

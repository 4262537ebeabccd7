"""What a statistic is: it takes in batches as they stream by, and is afterwards cut into units for criteria."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from topiarist.errors import InputError
from topiarist.graph import Axes
from topiarist.plan import Units
from topiarist.stats.cut import rows_of
from topiarist.stats.uses import Use, Watch

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Subject:
    """What statistics are about: a model, and for those that need them its units, axes and example inputs.

    ``removed`` maps parameters to what an earlier cut has removed of them, bool of their shapes.
    """

    model: nn.Module
    units: tuple[Units, ...] = ()
    axes: Axes | None = None
    example_inputs: Any = None
    removed: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """The floating-point parameters by name; tied ones once."""
        return {name: p for name, p in self.model.named_parameters() if p.is_floating_point()}

    def zeros(self) -> dict[str, Tensor]:
        """A zero of each parameter's shape, at least in single precision, to add up in."""
        dtypes = {n: torch.promote_types(p.dtype, torch.float32) for n, p in self.parameters.items()}
        return {n: torch.zeros_like(p, dtype=dtypes[n], requires_grad=False) for n, p in self.parameters.items()}


@dataclass(eq=False)
class Batch:
    """One batch on its way: ``outputs`` and ``loss`` hang on the graph where a statistic reads the loss.

    ``size`` is how many samples it has, ``number`` counts from 1 in each pass, ``turn`` counts the passes from 0.
    """

    subject: Subject
    inputs: Any
    targets: Any
    outputs: Any
    loss: Tensor | None
    loss_function: Loss | None
    size: int
    number: int
    turn: int
    watch: Watch | None
    keeps_graph: bool

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """∂ loss / ∂ w for every floating-point parameter w that the loss reaches; computed once for all who ask."""
        assert self.loss is not None, "this statistic has to say that it reads the loss"  # noqa: S101 our own code
        leaves = self.subject.parameters
        if self.watch is None:
            found = torch.autograd.grad(self.loss, [*leaves.values()], allow_unused=True, retain_graph=self.keeps_graph)
        else:
            with self.watch.backward():
                found = torch.autograd.grad(
                    self.loss, [*leaves.values()], allow_unused=True, retain_graph=self.keeps_graph
                )
        return {name: g for name, g in zip(leaves, found, strict=True) if g is not None}


class Statistic:
    """Takes in a stream of batches; one object collects one thing once. Override what is needed.

    ``reads`` says what it reads of the data, ``num_passes`` how often. ``watches`` asks for the uses of weights on the
    way forward, or on the way back too. ``keeps_graph`` asks for a graph that can be gone through again.
    """

    reads: Literal["nothing", "inputs", "loss"] = "loss"
    num_passes: int = 1
    watches: Literal["", "forward", "backward"] = ""
    keeps_graph: bool = False

    def hooked(self, model: nn.Module) -> AbstractContextManager[None]:
        """Entered around each pass, for those that look at modules: what it hangs on ``model`` it takes off again."""
        del model
        return nullcontext()

    def on_start(self, size: int) -> None:
        """A batch of ``size`` examples is about to run."""

    def on_use(self, use: Use) -> None:
        """Take in a use of a weight, on the way forward."""

    def on_gradient(self, use: Use) -> None:
        """Take in a use of a weight with the gradient of its inputs, on the way back."""

    def on_batch(self, batch: Batch) -> None:
        """Take in a batch that has been run."""

    def end(self, turn: int) -> None:
        """The pass is over."""

    def of(self, units: Units) -> Any:
        """What a criterion sees of these units: tensors whose first dimension is the unit, or anything by name."""
        raise NotImplementedError


class PerParameter(Statistic):
    """A statistic whose ``values`` have the shapes of parameters: units are cut from them as from weights.

    ``is_linear`` says that values of a weight in other coordinates are those of the weight put into them, as of
    gradients: units that are no positions (`topiarist.plan.Member.view`) take no others.
    """

    is_linear: ClassVar[bool] = False
    _weights: Mapping[str, Tensor] | None = None  # of units that are no positions; only linear statistics need them

    def __init__(self, subject: Subject) -> None:
        self.values: dict[str, Tensor] = subject.zeros()
        self._weights = subject.parameters

    def of(self, units: Units) -> tuple[Tensor, ...]:
        """One tensor of shape (num units, elements) per member, as in `topiarist.saliency.Slices`."""
        if not self.is_linear and any(member.view for member in units.members):
            raise InputError(f"components of {units.name!r} have weights and gradients, no {type(self).__name__}")
        return rows_of(units, self.values, self._weights)


def name_of(need: Need) -> str:
    """What messages call a need.

    Example:
        >>> name_of("gradients"), name_of(Statistic)
        ('gradients', 'Statistic')
    """
    return str(getattr(need, "__name__", need))


Factory = Callable[[Subject], Statistic]
Need = Hashable  # a word of `topiarist.stats.words`, or a factory of one's own
Statistics = Mapping[Need, Statistic]

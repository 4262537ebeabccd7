"""Where a model's products with weights go: through biases and batch norms, into a sum, into a relu.

One run over one batch says it, seen below the modules, so that it holds for whatever layers a model is written with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from topiarist.graph.copies import structural_copy
from topiarist.inputs import call
from topiarist.stats.uses import Use, Watch, Window

_aten = torch.ops.aten
_ADDS = (_aten.add.Tensor, _aten.add_.Tensor)
_MULS = (_aten.mul.Tensor, _aten.mul_.Tensor)
_RELUS = (_aten.relu.default, _aten.relu_.default)
_VIEWS = (_aten.view.default, _aten._unsafe_view.default, _aten.clone.default)
_NORMS = (
    _aten.native_batch_norm.default,
    _aten.cudnn_batch_norm.default,
    _aten._native_batch_norm_legit_no_training.default,
)
_FACTOR = {
    _aten.convolution.default: 0,
    _aten.mm.default: 0,
    _aten.bmm.default: 0,
    _aten.addmm.default: 1,
}  # where the activations stand among the arguments
_BIAS = {_aten.convolution.default: 2, _aten.addmm.default: 0}


@dataclass(frozen=True)
class Step:
    """An affine map of each output channel, (y − mean) / √(variance + eps) · scale + shift, by tensors of the model."""

    scale: str | None = None
    shift: str | None = None
    mean: str | None = None
    variance: str | None = None
    eps: float = 0.0

    @property
    def taker(self) -> str | None:
        """The tensor that takes a constant: what is subtracted or added first."""
        return self.mean or (self.shift if self.scale is None else None)

    def affine(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor | float, Tensor | float]:
        """Scale and shift, each (outputs,) or one number."""

        def held(name: str | None, default: float) -> Tensor | float:
            return default if name is None else tensors[name].double().flatten()

        scale = held(self.scale, 1.0)
        if self.variance is not None:
            scale = (tensors[self.variance].double().flatten() + self.eps).rsqrt() * scale
        return scale, held(self.shift, 0.0) - held(self.mean, 0.0) * scale


@dataclass(frozen=True)
class Site:
    """One product with a weight, and what becomes of it: ``steps``, then a sum with ``partner``, then a relu.

    ``event``, ``end`` and ``partner`` number the operators of a run: the product itself, the last of what is linear in
    it, and what made the other summand, which is there before the product is.
    """

    event: int
    weight: str
    in_dim: int
    place: int
    window: Window | None
    num_out: int
    steps: tuple[Step, ...]
    has_bias: bool  # whether the first step is the product's own, part of its result
    end: int
    partner: int | None
    is_relu: bool

    def use(self, args: Sequence[Any]) -> Use:
        """The product that the operator with these arguments makes."""
        return Use(self.weight, self.in_dim, args[self.place], self.window)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight, or what has its shape, as (groups, outputs of one, inputs of one)."""
        if self.window is not None:
            return weight.reshape(self.window.groups, self.num_out // self.window.groups, -1)
        stack = weight if weight.dim() == 3 else weight[None]
        return stack if self.in_dim == weight.dim() - 1 else stack.mT

    def unmatrix(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `matrix`."""
        if self.window is None and self.in_dim != len(shape) - 1:
            matrix = matrix.mT
        return matrix.reshape(shape)

    def outputs(self, of: Tensor, where: Tensor) -> Tensor:
        """What has the product's shape, or views of it, as (rows, groups, outputs of one); ``where`` says which."""
        if self.window is not None:
            rows = of.movedim(1, -1)
            rows = rows[torch.unravel_index(where, rows.shape[:-1])]
            return rows.reshape(len(rows), self.window.groups, -1)
        return of.movedim(0, 1)[where] if self.num_out == 0 else of.reshape(-1, 1, self.num_out)[where]


def wiring(model: nn.Module, inputs: Any) -> list[Site]:
    """The products of ``model`` on ``inputs`` whose weight takes part once and as a whole, in order of execution.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU())
        >>> [site] = wiring(net, torch.zeros(1, 1, 4, 4))
        >>> site.weight, [step.mean for step in site.steps], site.is_relu
        ('0.weight', ['1.running_mean'], True)
    """
    copied = structural_copy(model).eval()
    scout = _Scout(copied)
    with torch.no_grad(), scout:
        call(copied, inputs)
    uses = [use.weight for _, use in scout.products]
    return [
        site
        for event, use in scout.products
        if uses.count(use.weight) == 1 and (site := scout.site(event, use)) is not None
    ]


@dataclass(frozen=True, eq=False)
class _Event:
    number: int
    func: Any
    args: tuple[Any, ...]
    inputs: tuple[int, ...]  # the values among the arguments
    output: int = -1
    shape: torch.Size = field(default_factory=torch.Size)


class _Scout(Watch):  # type: ignore[no-untyped-call]
    """Numbers operators and the values they make; what is written in place is a new value."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, self._keep)
        self.events: list[_Event] = []
        self.products: list[tuple[_Event, Use]] = []
        self._use: Use | None = None
        self._values: dict[int, int] = {}
        self._alive: list[Tensor] = []  # so that no id is given twice
        held = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self._names = {(t.data_ptr(), t.shape): name for name, t in reversed(held)}

    def _keep(self, use: Use) -> None:
        self._use = use

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        values = tuple(self._values[id(t)] for t in tensors if id(t) in self._values)
        self._use = None
        out = super().__torch_dispatch__(func, types, args, kwargs)
        first = next((t for t in tree_leaves(out) if isinstance(t, Tensor)), None)
        event = _Event(len(self.events), func, args, values)
        if first is not None and self.name(first) is None:
            self._alive.append(first)
            self._values[id(first)] = event.number
            event = _Event(len(self.events), func, args, values, event.number, first.shape)
        self.events.append(event)
        if self._use is not None:
            self.products.append((event, self._use))
        return out

    def name(self, tensor: Any) -> str | None:
        """The model's name of a tensor that it holds."""
        return self._names.get((tensor.data_ptr(), tensor.shape)) if isinstance(tensor, Tensor) else None

    def site(self, event: _Event, use: Use) -> Site | None:
        """What becomes of a product; None where its weight is no whole factor of it."""
        place = _FACTOR.get(event.func)
        if place is None or use.inputs is not event.args[place] or (use.window is not None and use.window.transposed):
            return None
        shape = next(p.shape for entries in self._parameters.values() for n, p in entries if n == use.weight)
        is_stack = use.window is None and len(shape) == 3
        num_out = 0 if is_stack else shape[1 - use.in_dim if use.window is None else 0]
        bias = event.args[_BIAS[event.func]] if event.func in _BIAS else None
        if not is_stack and event.shape[1 if use.window is not None else -1] != num_out:
            return None
        if bias is not None and self.name(bias) is None:
            return None
        steps, last = ([], event) if is_stack else self._follow(event, bias, num_out, use.window is not None)
        partner = None if is_stack else self._partner(event, last)
        if partner is not None:
            last = self._consumers(last)[0]
        after = self._consumers(last)
        is_relu = bool(after) and all(e.func in _RELUS for e in after)
        return Site(
            event=event.number,
            weight=use.weight,
            in_dim=use.in_dim,
            place=place,
            window=use.window,
            num_out=num_out,
            steps=tuple(steps),
            has_bias=bias is not None,
            end=last.number,
            partner=partner,
            is_relu=is_relu,
        )

    def _follow(
        self, event: _Event, bias: Tensor | None, num_out: int, is_convolution: bool
    ) -> tuple[list[Step], _Event]:
        steps = [] if bias is None else [Step(shift=self.name(bias))]
        last = event
        while True:
            after = self._consumers(last)
            if len(after) != 1 or after[0].output < 0:
                return steps, last
            step = self._step(after[0], num_out, is_convolution)
            if step is None:
                return steps, last
            steps.extend(step)
            last = after[0]

    def _step(self, event: _Event, num_out: int, is_convolution: bool) -> list[Step] | None:
        """The steps that an operator is for each output channel; None where it is no such thing."""
        dim = 1 if is_convolution else -1
        if len(event.shape) < 2 or event.shape[dim] != num_out:
            return None
        if event.func in _VIEWS:
            return [] if not is_convolution or event.func is _aten.clone.default else None
        if event.func in _NORMS and (is_convolution or len(event.shape) == 2):
            if event.func is not _aten._native_batch_norm_legit_no_training.default and event.args[5]:
                return None
            scale, shift, mean, variance = (self.name(t) for t in event.args[1:5])
            known = mean is not None and variance is not None
            return [Step(scale, shift, mean, variance, float(event.args[-1]))] if known else None
        if event.func in _ADDS or event.func in _MULS:
            other = next((a for a in event.args[:2] if self.name(a) is not None), None)
            rank = len(event.shape)
            wide = [1] * rank
            wide[dim] = num_out
            if other is not None and [1] * (rank - other.dim()) + list(other.shape) == wide and len(event.args) == 2:
                name = self.name(other)
                return [Step(shift=name) if event.func in _ADDS else Step(scale=name)]
        return None

    def _partner(self, product: _Event, last: _Event) -> int | None:
        """The event that made what the product is added to, where it is there before the product is."""
        after = self._consumers(last)
        if len(after) != 1 or after[0].func not in _ADDS or len(after[0].args) != 2 or len(after[0].inputs) != 2:
            return None
        [other] = [v for v in after[0].inputs if v != last.output] or [-1]
        same = after[0].shape == last.shape == (self.events[other].shape if other >= 0 else None)
        return other if same and other < product.number else None

    def _consumers(self, event: _Event) -> list[_Event]:
        return [e for e in self.events[event.number + 1 :] if event.output in e.inputs]


def affine(steps: Sequence[Step], num_out: int, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scale α and shift κ, float64 of shape (outputs,), of what the steps make of each output: α y + κ."""
    device = next(iter(tensors.values())).device
    scale, shift = (f(num_out, dtype=torch.float64, device=device) for f in (torch.ones, torch.zeros))
    for step in steps:
        a, b = step.affine(tensors)
        scale, shift = scale * a, shift * a + b
    return scale, shift

"""Channels chosen for each sample: a network that skips, example by example, what this example does not need.

Chen et al. 2019, "Self-adaptive network pruning": before each convolution a small network looks at what it reads and
says which of its outputs are worth computing.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.errors import InputError
from topiarist.graph import Axes
from topiarist.mask.units import units_in
from topiarist.outputs import tensors_in
from topiarist.plan import Member, Units

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYERS = (nn.Linear, *_CONVOLUTIONS)
_LEAST_HIDDEN = 8  # of fewer all may be dead at first
_OPEN = 1.28  # the logit at which noise of N(0, 1) leaves 0.9 of the channels open
_Value = TypeVar("_Value")


class Computed(NamedTuple):
    """The channels that are computed for one sample: those that are open, and some again up to a multiple.

    ``opened`` is floats (1, channels), ``pattern`` the same as bytes. The first ``num_open`` of the ``num`` that
    ``channels`` names are open, the rest only computed along; it is None where all are computed, in their order.
    """

    opened: Tensor
    pattern: bytes
    channels: Tensor | None
    num: int
    num_open: int


class _Recent(Generic[_Value]):
    """The last ``num`` values that were made, by what they were made for."""

    def __init__(self, num: int) -> None:
        self.num = num
        self.values: OrderedDict[Hashable, _Value] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        if not self.num:
            return make()
        if key not in self.values:
            if len(self.values) == self.num:
                self.values.popitem(last=False)
            self.values[key] = make()
        self.values.move_to_end(key)
        return self.values[key]


def _part(opened: Tensor, round_to: int, training: bool) -> Tensor:
    """The part of the channels that is computed, by sample; in training without rounding, for its gradient."""
    if training:
        return opened.mean(1)
    rounded = (opened.sum(1) / round_to).ceil() * round_to
    return rounded.clamp(max=opened.shape[1]) / opened.shape[1]


class Decision(nn.Module):
    """b = 1[s > θ], s = W₂ relu(W₁ GAP(x)): which of ``num_out`` channels are computed for each sample.

    In training noise is added to s, half of the samples see σ′(s) = clip(1.2 σ(s) − 0.1, 0, 1) and the others b, and
    the gradient is that of σ′ (Kaiser and Bengio 2018, improved semantic hashing). One channel at least, that of the
    largest s, is open. ``units`` names what is decided on, ``current`` is what was decided last: floats
    (samples, num_out).
    """

    threshold: Tensor

    def __init__(self, units: str, num_in: int, num_out: int, reduction: int) -> None:
        super().__init__()
        self.units = units
        hidden = max(_LEAST_HIDDEN, num_in // reduction)
        self.squeeze, self.excite = nn.Linear(num_in, hidden), nn.Linear(hidden, num_out)
        nn.init.constant_(self.excite.bias, _OPEN)
        self.register_buffer("threshold", torch.zeros(()))
        self.always_open = False
        self.current = torch.ones(0, num_out)
        self.computed = Computed(self.current, b"", None, num_out, num_out)  # of the one sample decided on alone

    def forward(self, x: Tensor) -> Tensor:
        """What is decided for x, (samples, num_in, …): floats (samples, num_out), 0 and 1 but for training."""
        saliency = self.saliency(x)
        if self.always_open:
            self.current = torch.ones_like(saliency)
        elif self.training:
            noisy = saliency - self.threshold + torch.randn_like(saliency)
            soft = (1.2 * noisy.sigmoid() - 0.1).clamp(0, 1)
            hard = _opened(noisy, 0).to(noisy.dtype) + (soft - soft.detach())  # exactly 0 or 1
            self.current = torch.where(torch.rand(len(x), 1, device=x.device) < 0.5, soft, hard)
        else:
            self.current = _opened(saliency, self.threshold).to(saliency.dtype)
        return self.current

    def saliency(self, x: Tensor, opened: Tensor | None = None) -> Tensor:
        """s of x, of which ``opened``, floats (samples, num_in), are read: (samples, num_out)."""
        pooled = x.mean(tuple(range(2, x.ndim))) if x.ndim > 2 else x
        if opened is not None:
            pooled = pooled * opened
        squeeze, excite = self.squeeze, self.excite
        hidden = F.linear(pooled, squeeze.weight, squeeze.bias).relu_()
        return F.linear(hidden, excite.weight, excite.bias)

    def alone(self, x: Tensor, opened: Tensor | None, compute: Callable[[Tensor, torch.dtype], Computed]) -> Computed:
        """What is computed for a single sample in evaluation mode."""
        saliency = self.saliency(x, opened)
        opens = torch.ones_like(saliency, dtype=torch.bool) if self.always_open else saliency > self.threshold
        made = compute(opens, x.dtype)
        if not made.num_open:
            made = compute(_opened(saliency, self.threshold), x.dtype)
        self.current, self.computed = made.opened, made
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "current": self.current.detach()}  # a copy has no part in the graph of the last call

    @property
    def num_macs(self) -> int:
        """Its own multiply–accumulates, a sample."""
        return self.squeeze.weight.numel() + self.excite.weight.numel()


def _opened(saliency: Tensor, threshold: Tensor | int) -> Tensor:
    return (saliency > threshold).scatter_(1, saliency.argmax(1, keepdim=True), True)


class AdaptiveLayer(nn.Module):
    """A linear layer or convolution that reads only open channels, and makes only those that its decision opens.

    Closed channels are multiplied by zero where they are read, after norms and activations. For a single sample in
    evaluation mode they are not computed: the weights of open channels are taken out, and what is not made is zero.
    The first channel is computed again, and read as zeros, as often as makes a multiple of ``round_to``: kernels like
    these, and are made anew for every number that they have not met. Where that would be all, nothing is taken out.

    Args:
        layer: the layer.
        decides: which of its outputs are made; None for all.
        reads: the decisions on its inputs, each with the channel that every input belongs to, −1 for none.
        num_macs: its multiply–accumulates, a sample.
    """

    def __init__(
        self,
        layer: nn.Module,
        decides: Decision | None,
        reads: Sequence[tuple[Decision, Tensor]],
        num_macs: float,
        round_to: int = 1,
    ) -> None:
        super().__init__()
        self.layer, self.decides, self.round_to = layer, decides, round_to
        self.reads = tuple(reads)  # modules of other layers: a tuple does not make them submodules of this one
        self.run = _run(*reads[0]) if len(reads) == 1 else 0
        self.num_macs = num_macs
        self.share = torch.ones(0)  # of the multiply–accumulates, by sample, the last time
        self.remember(0)

    def remember(self, num: int) -> None:
        """Keep the weights that were taken out for the last ``num`` patterns of open channels; 0 for none."""
        self.patterns: _Recent[Computed] = _Recent(num)
        self.weights: _Recent[tuple[Tensor, Tensor | None]] = _Recent(num)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        if len(x) == 1 and not self.training and not any(decision.training for decision, _ in self.reads):
            return self._skipping(x)
        opened = self._opened()
        if opened is not None:
            x = x * self._along(opened, x)
        made = None if self.decides is None else self.decides(x)
        read = self.reads[0][0].current if self.reads and self.run else opened
        share = torch.ones(len(x), dtype=x.dtype, device=x.device)
        for part in (read, made):
            share = share if part is None else share * _part(part, self.round_to, self.training)
        self.share = share
        out: Tensor = self.layer(x)
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "share": self.share.detach()}

    def _opened(self) -> Tensor | None:
        """Whether each input is open: floats (samples, inputs)."""
        opened: Tensor | None = None
        for decision, unit in self.reads:
            if self.run:
                return decision.current if self.run == 1 else decision.current.repeat_interleave(self.run, 1)
            unit = unit.to(decision.current.device)
            factor = torch.where(unit >= 0, decision.current[:, unit.clamp(min=0)], 1.0)
            opened = factor if opened is None else opened * factor
        return opened

    def _along(self, opened: Tensor, x: Tensor) -> Tensor:
        between = [1] * (x.ndim - 2)
        last = isinstance(self.layer, nn.Linear)
        return opened.view(len(x), *between, -1) if last else opened.view(len(x), -1, *between)

    def _skipping(self, x: Tensor) -> Tensor:
        """The output for one sample, from what is open and for what is."""
        layer: Any = self.layer
        dim = x.ndim - 1 if isinstance(layer, nn.Linear) else 1
        opened, decides, made, read, share = self._opened(), self.decides, None, None, 1.0
        if decides is not None:
            made = decides.alone(x, opened, self._computed)
            share *= made.num / made.opened.shape[1]
        if opened is not None:
            read = self.reads[0][0].computed if self.run else self._computed(opened != 0, opened.dtype)
            share *= read.num / read.opened.shape[1]
            x = self._read(x, opened, read, dim)
        self.share = x.new_full((1,), share)
        weight, bias = self._weights(layer, made, read)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, bias)
        out: Tensor = layer._conv_forward(x, weight, bias)
        if made is None or made.channels is None:
            return out
        return out.new_zeros(1, layer.out_channels, *out.shape[2:]).index_copy_(1, made.channels, out)

    def _computed(self, opens: Tensor, dtype: torch.dtype) -> Computed:
        """What is computed where channels are open, bools (1, channels)."""
        pattern = opens.cpu().numpy().tobytes()

        def compute() -> Computed:
            num_open = pattern.count(1)
            more = -num_open % self.round_to
            if num_open + more >= len(pattern):
                return Computed(opens.to(dtype), pattern, None, len(pattern), num_open)
            channels = F.pad(opens.view(-1).nonzero().view(-1), (0, more))
            return Computed(opens.to(dtype), pattern, channels, num_open + more, num_open)

        return self.patterns.get((pattern, dtype, torch.is_inference_mode_enabled()), compute)

    def _read(self, x: Tensor, opened: Tensor, read: Computed, dim: int) -> Tensor:
        """What is computed with of x; what is not open is zero."""
        if read.channels is None:
            return x if read.num_open == read.num else x * self._along(opened, x)
        x, run = _select(x, dim, read.channels, self.run), self.run or 1
        if read.num > read.num_open:
            x.narrow(dim, run * read.num_open, run * (read.num - read.num_open)).zero_()
        return x

    def _weights(self, layer: Any, made: Computed | None, read: Computed | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of what is computed."""
        rows, columns = None if made is None else made.channels, None if read is None else read.channels

        def take() -> tuple[Tensor, Tensor | None]:
            weight, bias = layer.weight, layer.bias
            if rows is not None:
                weight, bias = weight.index_select(0, rows), None if bias is None else bias.index_select(0, rows)
            return weight if columns is None else _select(weight, 1, columns, self.run), bias

        if torch.is_grad_enabled() or (rows is None and columns is None):
            return take()
        return self.weights.get((made and made.pattern, read and read.pattern), take)


def _select(x: Tensor, dim: int, index: Tensor, run: int) -> Tensor:
    """Of a dimension in which every channel has ``run`` places one after another, those of some channels."""
    if run <= 1:
        return x.index_select(dim, index)
    parts = x.view(*x.shape[:dim], -1, run, *x.shape[dim + 1 :]).index_select(dim, index)
    return parts.flatten(dim, dim + 1)


def _run(decision: Decision, unit: Tensor) -> int:
    """How many inputs each channel has, where they follow one another in the order of the channels; 0 otherwise."""
    num = decision.current.shape[1]
    run = len(unit) // num
    return run if torch.equal(unit, torch.arange(num, device=unit.device).repeat_interleave(run)) else 0


class SelfAdaptive(nn.Module):
    """A copy of ``model`` whose convolutions decide, sample by sample, which channels they compute.

    Every channel axis is decided on that a single convolution makes and that only linear layers and convolutions read,
    so that a channel that is not computed is one that is zero; others, those of residual streams among them, stay
    whole. `cost` says what the last call took.

    Args:
        reduction: how many times fewer hidden units a decision has than it reads channels; it has 8 at least.
        keep: patterns of modules whose channels are always computed.
        round_to: at batch 1 as many channels are computed as make a multiple of this; see `AdaptiveLayer`.

    Raises:
        InputError: the model has no such axis, ``keep`` matches nothing, or a number is below 1.
        TraceError: the model does not run on ``example_inputs``.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2))
        >>> adaptive = SelfAdaptive(net, torch.zeros(1, 1, 6, 6)).eval()
        >>> x = torch.rand(3, 1, 6, 6)
        >>> with adaptive.opened():
        ...     bool(torch.allclose(adaptive(x), net(x)))
        True
        >>> adaptive(x).shape, adaptive.cost().shape
        (torch.Size([3, 2]), torch.Size([3]))
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        reduction: int = 8,
        keep: Sequence[str] = (),
        round_to: int = 8,
    ) -> None:
        super().__init__()
        if reduction < 1 or round_to < 1:
            raise InputError(f"reduction and round_to are 1 or more, got {reduction!r} and {round_to!r}")
        axes, units = units_in(model, example_inputs, "channel", keep)
        self.model = copy.deepcopy(model)
        modules = dict(self.model.named_modules())
        chosen = [u for u in units if not u.step and _can_decide(axes, u, modules)]
        if not chosen:
            raise InputError("no convolution makes channels that only layers read; there is nothing to skip")
        batch = len(tensors_in(example_inputs)[0])
        macs = {name: number / batch for name, number in axes.macs_by_tensor().items()}
        self._whole = axes.num_macs() / batch
        decisions = {units.name: _decision(axes, units, modules, reduction) for units in chosen}
        for name in _layers_of(axes, chosen):
            made = next((u for u in chosen if _layer(axes.makers(u.name)[0]) == name), None)
            reads = [(decisions[u.name], m.unit) for u in chosen for m in axes.readers(u.name) if _layer(m) == name]
            adaptive = AdaptiveLayer(
                modules[name],
                None if made is None else decisions[made.name],
                [(decision, unit) for decision, unit in reads if unit is not None],
                macs.get(f"{name}.weight" if name else "weight", 0.0),
                round_to,
            )
            _replace(self, f"model.{name}", adaptive.train(modules[name].training))
        self.to(next(model.parameters()).device)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""
        return self.model(*args, **kwargs)

    @property
    def layers(self) -> list[AdaptiveLayer]:
        """The layers that decide, or read what is decided on."""
        return [module for module in self.modules() if isinstance(module, AdaptiveLayer)]

    @property
    def decisions(self) -> dict[str, Decision]:
        """The decisions by the units that they are on."""
        found = (layer.decides for layer in self.layers)
        return {decision.units: decision for decision in found if decision is not None}

    def cost(self) -> Tensor:
        """Multiply–accumulates of the last call, those of decisions included, over those of the model it was made of:
        floats (samples,); autograd goes through."""
        adaptive = sum(layer.num_macs for layer in self.layers)
        own = sum(decision.num_macs for decision in self.decisions.values())
        parts = torch.stack([layer.num_macs * layer.share for layer in self.layers]).sum(0)
        return (parts + (self._whole - adaptive) + own) / self._whole

    def shift(self, threshold: float) -> None:
        """Set θ of every decision: the higher, the less is computed."""
        for decision in self.decisions.values():
            decision.threshold.fill_(threshold)

    @contextmanager
    def remembering(self, num: int = 32) -> Iterator[SelfAdaptive]:
        """For serving: inside the ``with`` the weights that single samples took out are kept, and taken again for
        the same decisions, those of the last ``num`` patterns in each layer; the weights must not change meanwhile.

        Raises:
            InputError: ``num`` is below 1.

        Example:
            >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
            >>> adaptive, x = SelfAdaptive(net, torch.zeros(1, 1, 6, 6)).eval(), torch.rand(1, 1, 6, 6)
            >>> with adaptive.remembering(), torch.no_grad():
            ...     bool(torch.equal(adaptive(x), adaptive(x)))
            True
        """
        if num < 1:
            raise InputError(f"patterns to remember are 1 or more, got {num!r}")
        for layer in self.layers:
            layer.remember(num)
        try:
            yield self
        finally:
            for layer in self.layers:
                layer.remember(0)

    @contextmanager
    def opened(self) -> Iterator[SelfAdaptive]:
        """All channels open inside the ``with``: the network is the one that it was made of."""
        for decision in self.decisions.values():
            decision.always_open = True
        try:
            yield self
        finally:
            for decision in self.decisions.values():
                decision.always_open = False


def _layer(member: Member) -> str:
    return member.tensor.rpartition(".")[0]


def _can_decide(axes: Axes, units: Units, modules: Mapping[str, nn.Module]) -> bool:
    """Whether one convolution makes the units, and all that reads them are layers that can leave inputs out."""
    makers, readers = axes.makers(units.name), axes.readers(units.name)
    if len(makers) != 1 or not readers or axes.why_inexact(units.name):
        return False
    whole = makers[0].unit is not None and torch.equal(makers[0].unit, torch.arange(units.num))
    return (
        whole
        and _is_plain(axes, makers[0], 0, modules, _CONVOLUTIONS)
        and all(_is_plain(axes, m, 1, modules, _LAYERS) for m in readers)
    )


def _is_plain(
    axes: Axes, member: Member, dim: int, modules: Mapping[str, nn.Module], kinds: tuple[type[nn.Module], ...]
) -> bool:
    """Whether a member is that dimension of the weight of a stock layer without groups, which alone uses it, once."""
    name = _layer(member)
    tied = axes.tensors[member.tensor].tied_to or any(i.tied_to == member.tensor for i in axes.tensors.values())
    uses = [cost for cost in axes.costs if cost.tensor == member.tensor]
    return (
        type(modules[name]) in kinds
        and getattr(modules[name], "groups", 1) == 1
        and member.dim == dim
        and not tied
        and bool(name)
        and len(uses) == 1
    )


def _decision(axes: Axes, units: Units, modules: Mapping[str, nn.Module], reduction: int) -> Decision:
    layer: Any = modules[_layer(axes.makers(units.name)[0])]
    return Decision(units.name, layer.in_channels, units.num, reduction)


def _layers_of(axes: Axes, chosen: Sequence[Units]) -> list[str]:
    members = [m for units in chosen for m in (*axes.makers(units.name), *axes.readers(units.name))]
    return sorted({_layer(member) for member in members}, key=lambda name: axes.depths[name])


def _replace(model: nn.Module, name: str, by: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, by)

"""Multiply–accumulates of one call, counted where they happen: at every product that torch executes.

The formulas are those of `torch.utils.flop_counter`, halved (one multiply–accumulate is two FLOPs). Normalisation,
activations and biases count nothing, products of activations with each other (attention) do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from topiarist.measure.quiet import run, undisturbed

aten = torch.ops.aten

# FLOPs by operator: torch's table, and what it lacks.
_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten.mv: lambda matrix, vector, **_: 2 * matrix.numel(),
    aten.dot: lambda a, b, **_: 2 * a.numel(),
    aten.vdot: lambda a, b, **_: 2 * a.numel(),
}
# Which arguments of an operator are multiplied with each other; the others are added or only shape the result.
_FACTORS = {
    aten.addmm: (1, 2), aten.baddbmm: (1, 2), aten.mm: (0, 1), aten.bmm: (0, 1), aten.mv: (0, 1), aten.dot: (0, 1),
    aten.vdot: (0, 1),
    aten.convolution: (0, 1), aten._convolution: (0, 1), aten.cudnn_convolution: (0, 1),
}  # fmt: skip


@dataclass(frozen=True)
class MacCount:
    """The multiply–accumulates of one call, the whole batch together.

    ``nonzero`` leaves out those with a weight that is zero: Σ MACs · nnz(W) / |W| over the products (Blalock et al.
    2020). ``by_module`` has an entry for every module that ran a product, itself or in a module below it.
    ``num_operators`` is how many operators torch executed, views aside.
    """

    total: int
    nonzero: int
    by_module: Mapping[str, int] = field(repr=False)
    num_operators: int = field(repr=False)


def macs(model: nn.Module, example_inputs: Any) -> MacCount:
    """Count the multiply–accumulates of ``model`` on ``example_inputs``, in evaluation mode.

    A convolution has C_in / groups · C_out · k_h · k_w · H_out · W_out of them per example, a linear layer in · out.
    Weights that are computed from parameters (W ⊙ M, a parametrization) count as weights.

    Raises:
        TraceError: the model does not run on the example inputs.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4 * 4, 10))
        >>> count = macs(net, torch.zeros(1, 3, 6, 6))
        >>> count.total == 3 * 8 * 9 * 16 + 128 * 10, dict(count.by_module)
        (True, {'': 4736, '0': 3456, '2': 1280})
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    with undisturbed(model), _plain_kernels(model), _running(model) as stack, _Counter(model, stack) as counter:
        run(model, example_inputs)
    return MacCount(counter.total, counter.nonzero, MappingProxyType(counter.by_module), counter.num_operators)


def nonzero_macs(model: nn.Module, example_inputs: Any) -> int:
    """The multiply–accumulates whose weight is not zero: Σ MACs · nnz(W) / |W| over all products.

    No dense kernel skips the others: this is what a kernel could save at best, not what one does.

    Raises:
        TraceError: the model does not run on the example inputs.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> with torch.no_grad():
        ...     _ = layer.weight.copy_(torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 3.0]]))
        >>> nonzero_macs(layer, torch.zeros(5, 3))
        15
    """
    return macs(model, example_inputs).nonzero


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator; remembers which tensors are weights, or made from weights alone."""

    def __init__(self, model: nn.Module, stack: list[tuple[str, ...]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = self.nonzero = self.num_operators = 0
        self.by_module: dict[str, int] = {}
        self.stack = stack
        self.weights: WeakIdKeyDictionary = WeakIdKeyDictionary()
        for tensor in (*model.parameters(), *model.buffers()):
            self.weights[tensor] = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket not in _FLOPS and func is not torch.ops.prim.device.default:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self.num_operators += not func.is_view
        self._note(args, kwargs, out)
        if func.overloadpacket in _FLOPS:
            self._add(func.overloadpacket, args, _FLOPS[func.overloadpacket](*args, **kwargs, out_val=out) // 2)
        return out

    def _note(self, args: Any, kwargs: Any, out: Any) -> None:
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        made_from_weights = bool(given) and all(value in self.weights for value in given)
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and made_from_weights:
                self.weights[value] = True
            elif isinstance(value, Tensor):
                self.weights.pop(value, None)  # type: ignore[no-untyped-call]

    def _add(self, operator: Any, args: tuple[Any, ...], number: int) -> None:
        nonzero = number
        for position in _FACTORS.get(operator, ()):
            factor = args[position]
            if factor in self.weights and factor.numel():
                nonzero = nonzero * int(torch.count_nonzero(factor)) // factor.numel()
        self.total += number
        self.nonzero += nonzero
        for name in dict.fromkeys(name for names in self.stack for name in names):
            self.by_module[name] = self.by_module.get(name, 0) + number


@contextmanager
def _running(model: nn.Module) -> Iterator[list[tuple[str, ...]]]:
    """The names of the modules that run at the moment, the outermost first; a module outside of ``model`` has none."""
    names = {id(module): (name,) for name, module in model.named_modules()}
    stack: list[tuple[str, ...]] = []
    before = register_module_forward_pre_hook(lambda module, _: stack.append(names.get(id(module), ())))
    after = register_module_forward_hook(lambda *_: _discard(stack), always_call=True)
    try:
        yield stack
    finally:
        before.remove()
        after.remove()


def _discard(stack: list[tuple[str, ...]]) -> None:
    stack.pop()


@contextmanager
def _plain_kernels(model: nn.Module) -> Iterator[None]:
    """Without the kernels that do a whole layer in one operator, for which there is no formula."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with ExitStack() as stack:
            if any(isinstance(module, nn.RNNBase) for module in model.modules()):
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")  # oneDNN's switch warns of an option that is not used here
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)

"""What must hold for every network that topiarist cuts. Inherit the contract and override its fixture.

The checks are functions as well, so that a test can hand them something broken and see them fail. They compute what
they compare by themselves: masks by hand, parameters by counting, multiply–accumulates by torch's own counter.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, overrides
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import optimizer as torch_optimizer
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from topiarist.errors import InputError, ShrinkError
from topiarist.graph import Axes, AxisInfo, trace
from topiarist.graph.attributes import get, integer_attributes
from topiarist.held import held_tensors
from topiarist.inputs import call, fresh
from topiarist.mask import mask, unmask
from topiarist.outputs import tensors_in
from topiarist.plan import Plan
from topiarist.planning import Planner
from topiarist.shrink import shrink, verify
from topiarist.shrink.precision import float64_everywhere, in_float64
from topiarist.structure import Channel

TOLERANCE = 1e-9  # relative, in float64
CAUGHT = 1e-6  # what a wrong cut must at least change


class NetworkContract:
    """Cut half of every axis that may shrink: the same function, the predicted size, and nothing left behind.

    Example:
        class TestMine(NetworkContract):
            @pytest.fixture
            def network(self):
                return MyNet(), torch.randn(2, 3, 32, 32)
    """

    @pytest.fixture
    def network(self) -> tuple[nn.Module, Any]:
        """The network under test and its example inputs."""
        raise NotImplementedError("override the fixture `network`")

    def test_masked_and_shrunk_agree(self, network: tuple[nn.Module, Any]) -> None:
        cut = half_of_every_axis(*network)
        check_agreement(cut.exact(), network[1])
        assert verify(cut.model, cut.small, cut.plan, network[1]).passed

    def test_every_axis_alone_agrees(self, network: tuple[nn.Module, Any]) -> None:
        axes = trace(*network)
        for axis in axes.axes:
            if _is_of_tensors(axis):
                index = axis.size // 2
                cut = cut_axes(network[0], axes, {axis.name: torch.arange(axis.size) == index})
                check_agreement(cut.exact(), network[1])

    def test_the_order_of_indices_does_not_matter(self, network: tuple[nn.Module, Any]) -> None:
        axes = trace(*network)
        for axis in axes.axes:
            if _is_of_tensors(axis):
                check_symmetry(network[0], axes, axis.name, network[1])

    def test_a_shifted_cut_is_caught(self, network: tuple[nn.Module, Any]) -> None:
        cut = half_of_every_axis(*network).exact()
        for name in cut.plan.removed:
            caught = any(is_caught(cut.model, shifted, network[1]) for shifted in shifted_plans(cut, name))
            assert caught or len(tensors_of(cut, name)) < 2, f"a wrong cut of {name} went unseen"

    def test_the_bill_is_exact(self, network: tuple[nn.Module, Any]) -> None:
        cut = half_of_every_axis(*network)
        check_bill(cut.axes, {}, cut.model, network[1])
        check_bill(cut.axes, cut.plan.removed, cut.small, network[1])

    def test_what_is_left_learns(self, network: tuple[nn.Module, Any]) -> None:
        cut = half_of_every_axis(*network)
        for training in (False, True):
            assert learning(cut.small, training, network[1]) == learning(cut.model, training, network[1])

    def test_sizes_in_python_follow(self, network: tuple[nn.Module, Any]) -> None:
        cut = half_of_every_axis(*network)
        before, after = integer_attributes(cut.model), integer_attributes(cut.small)
        assert before.keys() == after.keys()
        assert all(type(value) is int for value in after.values())
        assert all(get(cut.small, path) == value for path, value in cut.plan.attributes.items())

    def test_the_empty_plan_is_the_identity(self, network: tuple[nn.Module, Any]) -> None:
        model, inputs = network
        plan = half_of_every_axis(*network).nothing()
        assert (plan.slices, plan.attributes, plan.num_removed) == ({}, {}, 0)
        before = snapshot(model, inputs)
        check_same(snapshot(shrink(model, plan, inputs), inputs, values_only=True), before)
        mask(model, plan)
        check_same(snapshot(model, inputs, values_only=True), before)
        unmask(model)
        check_same(snapshot(model, inputs), before)

    def test_nothing_is_left_behind(self, network: tuple[nn.Module, Any]) -> None:
        model, inputs = network
        with nothing_left_behind(model, inputs):
            cut = half_of_every_axis(model, inputs)
            cut.axes.summary()
            verify(model, cut.small, cut.plan, inputs)
        keys = list(model.state_dict())
        with nothing_left_behind(model, inputs):
            mask(model, cut.plan)
            assert list(model.state_dict()) == keys
            unmask(model)
        assert list(cut.small.state_dict()) == keys


# -------------------------------------------------------------------------------------------------------------- cuts


@dataclass(frozen=True)
class Cut:
    """A model, its axes, a plan made by hand and the shrunk model."""

    model: nn.Module
    axes: Axes
    plan: Plan

    @cached_property
    def small(self) -> nn.Module:
        """The model without what the plan removes."""
        return shrink(self.model, self.plan)

    def exact(self) -> Cut:
        """The same cut without the axes for which removing cannot equal zeroing."""
        exact = {name: gone for name, gone in self.plan.removed.items() if name not in self.plan.inexact}
        return cut_axes(self.model, self.axes, exact)

    def nothing(self) -> Plan:
        """The plan over the same axes that removes nothing."""
        return cut_axes(self.model, self.axes, {n: torch.zeros_like(g) for n, g in self.plan.removed.items()}).plan


def half_of_every_axis(model: nn.Module, inputs: Any) -> Cut:
    """Every second index of every free axis goes; of an axis of n, n − ⌊n / 2⌋ stay."""
    axes = trace(model, inputs)
    return cut_axes(model, axes, {a.name: torch.arange(a.size) % 2 == 1 for a in axes.axes if _is_of_tensors(a)})


def _is_of_tensors(axis: AxisInfo) -> bool:
    """Whether an axis may shrink, and its indices are those of tensors alone and of no module list."""
    return not axis.pins and not axis.lists


def cut_axes(model: nn.Module, axes: Axes, removed: Mapping[str, Tensor]) -> Cut:
    """The cut that removes these indices, by the names of their axes, and as many of axes that shrink with them."""
    planner = Planner(model, axes, Channel())
    return Cut(model, axes, planner.make(completed(axes, removed), ()))


def completed(axes: Axes, removed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same removal in whole steps: where axes shrink only together, the first free indices of each go as well."""
    result = dict(removed)
    for name, gone in removed.items():
        step = axes[name].step if bool(gone.any()) else ()
        wanted = [-(-int(removed[n].sum()) // size) for n, size in step if n in removed]
        times = min([max(wanted, default=0), *((axes[n].size - 1) // size for n, size in step)])
        for other, size in step:
            asked = removed.get(other, torch.zeros(axes[other].size, dtype=torch.bool))
            order = torch.argsort(~asked, stable=True)
            result[other] = torch.zeros_like(asked).index_fill(0, order[: times * size], True)
    return result


def tensors_of(cut: Cut, name: str) -> list[str]:
    """The tensors in which an axis of the cut lives."""
    return list(dict.fromkeys(member.tensor for member in cut.axes[name].members))


def shifted_plans(cut: Cut, name: str) -> Iterator[Plan]:
    """The sabotaged twins of a cut: in one tensor of the axis after the other, what goes is shifted by one index."""
    alone = cut_axes(cut.model, cut.axes, {name: cut.plan.removed[name]}).plan
    for tensor in tensors_of(cut, name):
        shifted = tuple(replace(piece, removed=piece.removed.roll(1)) for piece in alone.slices[tensor])
        yield replace(alone, slices={**alone.slices, tensor: shifted})


# ------------------------------------------------------------------------------------------------------------ checks


def check_agreement(cut: Cut, inputs: Any, tolerance: float = TOLERANCE) -> None:
    """The shrunk model and the model with zeros in the same places are one function, in float64."""
    error = disagreement(cut.model, cut.plan, inputs)
    assert error <= tolerance, f"relative error {error:.1e} with {', '.join(cut.plan.removed)} cut"


def is_caught(model: nn.Module, plan: Plan, inputs: Any) -> bool:
    """Whether a wrong plan shows: the model does not run, or zeroing and removing differ."""
    try:
        return disagreement(model, plan, inputs) > CAUGHT
    except (InputError, ShrinkError, RuntimeError):
        return True


def disagreement(model: nn.Module, plan: Plan, inputs: Any) -> float:
    """max |zeroed − shrunk| / max |zeroed| over all outputs, in float64: in evaluation mode, and in training mode too
    where that draws nothing at random."""
    zeroed = in_float64(model).eval()
    small = shrink(zeroed, plan)  # what is rescaled is not rounded
    with torch.no_grad():
        for name, slices in plan.slices.items():
            parameter = dict(zeroed.named_parameters(remove_duplicate=False)).get(name)
            for piece in slices if parameter is not None else ():
                if piece.is_zeroed:
                    parameter.movedim(piece.dim, 0)[piece.removed] = 0  # type: ignore[union-attr]
    error = distance(outputs(zeroed, inputs), outputs(small, inputs))
    if draws_at_random(zeroed, inputs):
        return error
    return max(error, distance(outputs(zeroed.train(), inputs), outputs(small.train(), inputs)))


def check_symmetry(model: nn.Module, axes: Axes, name: str, inputs: Any, tolerance: float = TOLERANCE) -> None:
    """Permuting the indices of an axis wherever it lives leaves the function as it is, exact or not."""
    model = in_float64(model).eval()
    error = distance(outputs(model, inputs), outputs(permuted(in_float64(model), axes, name), inputs))
    assert error <= tolerance, f"relative error {error:.1e} with the indices of {name} in another order"


def permuted(model: nn.Module, axes: Axes, name: str) -> nn.Module:
    """``model`` itself, with the indices of one axis in another order in all tensors."""
    axis = axes[name]
    order = torch.randperm(axis.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for member in axis.members:
            assert member.dim is not None
            assert member.unit is not None
            places = torch.arange(member.unit.numel())
            for to, come in enumerate(order.tolist()):
                places[member.unit == to] = (member.unit == come).nonzero().flatten()
            tensor = _tensor(model, member.tensor)
            tensor.copy_(tensor.index_select(member.dim, places))
    return model


def check_bill(axes: Axes, removed: Mapping[str, Tensor], small: nn.Module, inputs: Any) -> None:
    """Parameters, bytes and multiply–accumulates are predicted exactly."""
    sizes = axes.sizes(removed)
    parameters, buffers = list(small.parameters()), list(small.buffers())
    assert axes.num_params(sizes) == sum(p.numel() for p in parameters)
    assert axes.num_bytes(sizes) == sum(t.numel() * t.element_size() for t in [*parameters, *buffers])
    assert axes.num_macs(sizes) == count_macs(small, inputs)


def count_macs(model: nn.Module, inputs: Any) -> float:
    """Multiply–accumulates of one call by `torch.utils.flop_counter`, and what its table lacks."""
    aten = torch.ops.aten
    products = {aten.mv: lambda a, b, **_: 2 * a[0] * a[1]}
    products |= dict.fromkeys([aten.dot, aten.vdot], lambda a, b, **_: 2 * a[0])
    if hasattr(aten, "_grouped_mm"):  # each row meets one matrix
        products[aten._grouped_mm] = lambda a, b, *_, **__: 2 * a[0] * a[1] * b[2]
    counter = FlopCounterMode(display=False, custom_mapping=products)
    with sdpa_kernel(SDPBackend.MATH), _in_products(), torch.no_grad(), counter:
        call(copy.deepcopy(model).eval(), fresh(inputs))
    return counter.get_total_flops() / 2


@contextmanager
def _in_products() -> Iterator[None]:
    """Recurrent and encoder layers as the products that they are made of, which the counter sees."""
    before = torch._C._get_mkldnn_enabled(), torch.backends.mha.get_fastpath_enabled()
    torch._C._set_mkldnn_enabled(False)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before[0])
        torch.backends.mha.set_fastpath_enabled(before[1])


def learning(model: nn.Module, training: bool, inputs: Any) -> set[str]:
    """The parameters that get a finite gradient from the sum of the outputs."""
    model = copy.deepcopy(model).train(training)
    with torch.random.fork_rng(devices=[]):
        found = [out for out in tensors_in(call(model, fresh(inputs))) if out.requires_grad]
    torch.autograd.backward([out.abs().sum() for out in found])
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.isfinite().all())}


# ---------------------------------------------------------------------------------------------------------- snapshots


def snapshot(model: nn.Module, inputs: Any, *, values_only: bool = False) -> dict[str, Any]:
    """All that a call may change: of the model, of its inputs and, without ``values_only``, of the process."""
    found: dict[str, Any] = {
        "state": {name: _bits(tensor) for name, tensor in model.state_dict().items()},
        "tensors": {name: _bits(tensor) for name, tensor in _tensors(model)},
        "integers": {path: (value, type(value)) for path, value in integer_attributes(model).items()},
        "modules": {name: (type(m), m.training, sorted(m.__dict__)) for name, m in model.named_modules()},
        "hooks": {name: _num_hooks(m) for name, m in model.named_modules()},
        "gradients": {name: (p.requires_grad, p.grad is None) for name, p in model.named_parameters()},
        "inputs": [_bits(t) for t in tree_leaves(inputs) if isinstance(t, Tensor)],
    }
    if not values_only:
        found["identities"] = {name: id(tensor) for name, tensor in _tensors(model)}
        found["process"] = {
            "random": (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())),
            "modes": (len(_function_modes()), len(_get_current_dispatch_mode_stack())),
            "flags": (torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled(), torch.get_default_dtype()),
            "hooks": (
                len(torch_optimizer._global_optimizer_post_hooks),
                len(nn.modules.module._global_forward_hooks),
                len(nn.modules.module._global_forward_hooks_with_kwargs),
            ),
        }
    return found


def check_same(found: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Two snapshots agree in all that both hold."""
    for what in found.keys() & before.keys():
        assert found[what] == before[what], f"{what} changed"


@contextmanager
def nothing_left_behind(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Inside the ``with``, whatever happens; afterwards model, inputs and process are bit for bit as before."""
    before = snapshot(model, inputs)
    yield
    check_same(snapshot(model, inputs), before)


# ------------------------------------------------------------------------------------------------------------ helpers


def draws_at_random(model: nn.Module, inputs: Any) -> bool:
    """Whether training mode makes the output depend on the random state, as dropout does."""
    found = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found.append(outputs(copy.deepcopy(model).train(), inputs))
    return distance(*found) != 0


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """What ``model`` returns, in the mode it is in, on random inputs in the likeness of ``inputs``."""
    generator = torch.Generator().manual_seed(1)

    def redraw(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.randn(value.shape, generator=generator, dtype=torch.float64)
        return value.clone() if isinstance(value, Tensor) else value

    with torch.no_grad(), float64_everywhere():
        return tensors_in(call(model, tree_map(redraw, inputs)))


def distance(expected: list[Tensor], found: list[Tensor]) -> float:
    """max |a − b| / max |a| over all outputs; infinite where shapes differ or something is not finite."""
    if [t.shape for t in expected] != [t.shape for t in found]:
        return float("inf")
    gap = max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
    scale = max(float(a.abs().max()) for a in expected)
    return gap / scale if np.isfinite(gap) and scale > 0 else float("inf")


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for module_name, module in model.named_modules():
        for held in (module._parameters, module._buffers, held_tensors(module)):
            for name, value in held.items():
                if isinstance(value, Tensor):
                    yield f"{module_name}.{name}", value


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    return next(tensor for found, tensor in _tensors(model) if found == f"{path}.{leaf}")


def _bits(tensor: Tensor) -> tuple[Any, ...]:
    kind = (tuple(tensor.shape), tensor.dtype, tensor.device)
    if tensor.is_meta:
        return kind
    return (*kind, tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())


def _function_modes() -> list[Any]:
    return list(overrides._get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def _num_hooks(module: nn.Module) -> dict[str, int]:
    return {name: len(value) for name, value in module.__dict__.items() if name.endswith("_hooks")}

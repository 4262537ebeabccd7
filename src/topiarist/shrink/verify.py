"""The invariant: a model masked by a plan and one shrunk by it are the same function, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from topiarist.asked import require_module
from topiarist.errors import InputError
from topiarist.graph import Axes, trace
from topiarist.graph.bypass import identity
from topiarist.graph.factored import projected
from topiarist.graph.states import random_states_kept
from topiarist.graph.unchosen import Fills, never_chosen
from topiarist.inputs import call, fresh
from topiarist.outputs import tensors_in
from topiarist.plan import Plan
from topiarist.shrink.apply import shrink
from topiarist.shrink.precision import float64_everywhere, in_float64

_MOVES = (0.5, 0.05)  # of what is usual for a weight of its size; the smaller one where the larger leaves a domain
TOLERANCE = 1e-9  # relative, in float64: sums of n ≤ 10⁶ terms in another order differ by n·2⁻⁵³ ≈ 1e-10 at most


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    ``error`` is max |masked − shrunk| / max |masked| over the outputs, in float64, with all exact axes cut;
    ``inexact`` names the cut axes for which removing cannot equal zeroing, with the operator that makes it so, and
    ``inexact_error`` is the same measure with those cut as well (None where there are none). Axes of experts that
    are cut are in ``unchosen`` where ``error`` holds for them too, against a model that never chooses those that go.
    """

    error: float
    tolerance: float
    exact: tuple[str, ...]
    inexact: Mapping[str, str]
    inexact_error: float | None
    unchosen: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether masking and shrinking agree on every exact axis."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "agree" if self.passed else "DIFFER"
        text = (
            f"masked and shrunk {verdict}: relative error {self.error:.1e} in float64 over {len(self.exact)} exact "
            f"axes (tolerance {self.tolerance:.0e})"
        )
        if self.unchosen:
            text += f", and {len(self.unchosen)} axes of experts, of which those that go are never chosen"
        if self.inexact:
            text += f"; {len(self.inexact)} inexact axes, error {self.inexact_error:.1e} with them cut too: "
            text += "; ".join(f"{name}: {reason}" for name, reason in self.inexact.items())
        return text


def verify(
    model: nn.Module, small: nn.Module, plan: Plan, example_inputs: Any, *, tolerance: float = TOLERANCE
) -> Verification:
    """Check that ``small`` is ``model`` minus what ``plan`` removes: mask ≡ shrink, in float64.

    Both run in evaluation mode on ``example_inputs`` with every floating-point input redrawn from N(0, 1): once with
    the model's weights and once with all parameters moved by N(0, 1 / 4n), n the weights that one output has, so that
    layers that begin at zero cannot hide a wrong cut behind them. What the model draws at random is the same in every
    run. Where the plan cuts axes over which an operator runs (a layer norm, say), equality is demanded of the other
    axes alone, on a model shrunk by those, and the inexact ones are named. Experts are an exception: the whole cut is
    compared with a model in which those that go are never chosen (`topiarist.graph.unchosen`), as far as all operators
    over their axis know what that means.

    Raises:
        InputError: ``small`` does not hold the tensors that ``plan`` leaves of ``model``, or the model runs an
            operator that does not exist in float64.

    Example:
        >>> import topiarist
        >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), torch.zeros(1, 4)
        >>> plan = topiarist.plan(net, x, structure="channel", budget=topiarist.Budget(sparsity=0.5))
        >>> verify(net, shrink(net, plan), plan, x).passed
        True
    """
    require_module(small)
    whole = shrink(model, plan)
    _check_tensors(small, whole)
    inputs = _random_like(example_inputs)
    inexact = {name: why for name, why in plan.inexact.items() if bool(plan.removed[name].any())}
    exact_names = tuple(name for name, gone in plan.removed.items() if bool(gone.any()) and name not in inexact)
    own, axes = 0.0, trace(model, example_inputs) if inexact else None
    if plan.bases or plan.rescaled or inexact:  # the one to be proved is not the one that the proof is of
        own = _distance(_outputs(in_float64(whole), inputs), _outputs(in_float64(small), inputs))
    if plan.bases or plan.rescaled:  # products that the model's own precision rounds: they are proved in float64
        model = in_float64(model)
        small = shrink(model, plan)
    if axes is None:
        error = _worst(model, small, plan, inputs, tolerance)
        return Verification(max(error, own), tolerance, exact_names, {}, None)
    part = exact_part(plan, axes)
    error = _worst(model, shrink(model, part), part, inputs, tolerance)
    experts = {name: plan.removed[name] for name in inexact if axes[name].is_expert}
    fills = axes.unchosen(experts) if [*experts] == [*inexact] else {}
    if not fills:
        gap = _error(model, small, _Masked(plan), inputs)
        return Verification(max(error, own), tolerance, exact_names, inexact, gap)
    error = max(error, own, _worst(model, small, plan, inputs, tolerance, _Masked(part, fills)))
    return Verification(error, tolerance, exact_names, {}, None, tuple(experts))


def _worst(
    model: nn.Module, small: nn.Module, plan: Plan, inputs: Any, tolerance: float, masked: _Masked | None = None
) -> float:
    """The larger of the errors with the model's weights and with moved ones; the first that is too large ends it."""
    masked = masked or _Masked(plan)
    error = _error(model, small, masked, inputs)
    for scale in _MOVES if error <= tolerance else ():
        moved = _moved(model, inputs, scale)
        smaller = shrink(moved, plan)
        gap = _gap_of([moved].pop, [smaller].pop, masked, inputs)  # its own to change: large ones have no room for two
        if gap is not None:
            return max(error, gap)
    return error


@dataclass(frozen=True)
class _Masked:
    """What a model is without when nothing is cut out of it: what ``plan`` removes is zero, and where ``fills`` say so,
    experts are never chosen."""

    plan: Plan
    fills: Fills = field(default_factory=dict)

    def outputs(self, model: nn.Module, inputs: Any) -> list[Tensor]:
        """What ``model`` returns so; it is changed."""
        with never_chosen(model, self.fills) if self.fills else nullcontext():
            return _outputs(_zeroed(model, self.plan), inputs)


def exact_part(plan: Plan, axes: Axes) -> Plan:
    """The part of ``plan`` that cuts exact axes only."""
    removed = {name: gone for name, gone in plan.removed.items() if name not in plan.inexact}
    return Plan(
        plan.structure, removed, axes.slices(removed), axes.attributes(removed)[0], rescaled=axes.rescaled(removed)
    )


def _error(model: nn.Module, small: nn.Module, masked: _Masked, inputs: Any) -> float:
    """max |masked − small| / max |masked|; infinite where the masked model returns what is not a number."""
    gap = _gap_of(lambda: in_float64(model), lambda: in_float64(small), masked, inputs)
    return math.inf if gap is None else gap


def _gap_of(model: Callable[[], nn.Module], small: Callable[[], nn.Module], how: _Masked, inputs: Any) -> float | None:
    """The same of models in float64, each made when it is its turn; ``model`` is changed.

    None where the masked model returns what is not a number: weights outside of its domain.
    """
    masked = model()
    try:
        expected = how.outputs(masked, inputs)
    except RuntimeError as error:  # of an operator without a float64 kernel, or a type that is written in the code
        raise InputError(
            f"{type(masked).__name__} does not run in float64, in which the proof is done ({error}); compare it with "
            f"the smaller model on your own data"
        ) from error
    if any(bool(t.isnan().any()) for t in expected):
        return None
    del masked
    return _distance(expected, _outputs(small(), inputs))


def _distance(expected: list[Tensor], found: list[Tensor]) -> float:
    """max |expected − found| / max |expected| over all outputs."""
    finite = [t[t.isfinite()].abs() for t in expected]
    scale = max((float(t.max()) for t in finite if t.numel()), default=0.0) or 1.0
    return max((_gap(a, b) for a, b in zip(expected, found, strict=True) if a.numel()), default=0.0) / scale


def _zeroed(model: nn.Module, plan: Plan) -> nn.Module:
    """The same model with what ``plan`` removes set to zero, for good: a mask would keep what was there."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, removed in plan.masks(model).items():
            parameters[name].masked_fill_(removed.to(parameters[name].device), 0)
        for name, basis in plan.bases.items():
            parameters[name].copy_(projected(parameters[name], basis))
    modules = dict(model.named_modules())
    for name, form in plan.bypassed.items():
        modules[name].forward = identity(form)  # not a hook: a layer that has run has filled its cache
    return model


def _gap(a: Tensor, b: Tensor) -> float:
    """max |a − b|, where equal infinities are equal; infinite for other shapes and what is not a number."""
    if a.shape != b.shape or bool((a.isnan() | b.isnan()).any()):
        return float("inf")
    return float((a - b).abs().masked_fill(a == b, 0).max())


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad(), random_states_kept(model), float64_everywhere():
        torch.manual_seed(0)
        out = call(model.eval(), fresh(inputs))
    found = [torch.view_as_real(t) if t.is_complex() else t for t in tensors_in(out)]
    return [t.double() for t in found if t.is_floating_point()]


def _moved(model: nn.Module, inputs: Any, scale: float) -> nn.Module:
    """A float64 copy with every parameter moved, by ``scale`` times what is usual for one of its size.

    Its batch norms take their statistics from these inputs, so that a signal comes through to the output: where little
    does, a wrong cut is as small as the rest of it, and the constants of the last layer drown both.
    """
    moved = in_float64(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            num = parameter[:1].numel() if parameter.dim() > 1 else 1
            parameter.add_(scale * max(1, num) ** -0.5 * noise.to(parameter.device))
    _take_statistics(moved, inputs)
    return moved


def _take_statistics(model: nn.Module, inputs: Any) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    if not norms:
        return
    before = copy.deepcopy([(m.running_mean, m.running_var) for m in norms])
    for norm in norms:
        norm.momentum = 1.0
    try:
        with torch.no_grad(), random_states_kept(model):
            call(model.train(), fresh(inputs))
    except Exception:  # a model that does not run in training mode, on one example say, keeps those it has
        for norm, (mean, var) in zip(norms, before, strict=True):
            norm.running_mean, norm.running_var = mean, var
    model.eval()


def _random_like(inputs: Any) -> Any:
    generator = torch.Generator().manual_seed(0)

    def redraw(x: Any) -> Any:
        if isinstance(x, Tensor) and x.is_floating_point():
            return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        return x

    return tree_map(redraw, inputs)


def _check_tensors(small: nn.Module, expected: nn.Module) -> None:
    found = dict(small.state_dict())
    for name, tensor in expected.state_dict().items():
        if name not in found or found[name].shape != tensor.shape or not torch.equal(found[name], tensor):
            raise InputError(
                f"{name} of the smaller model is not what the plan leaves of the model; verify right after shrink, "
                f"before any more training"
            )

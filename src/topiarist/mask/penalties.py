"""Pressure towards zero while training: on norm scales, on whole units, growing, or by importance.

Each is made for the units of a model, of whatever structure and layers, and is called with the model between
``backward()`` and ``optimizer.step()``: it adds its gradient to ``.grad``. Under mixed precision call it after the
gradients are unscaled; in distributed training after they are reduced, which ``backward()`` does.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from topiarist.errors import InputError
from topiarist.mask.units import parameters_with, spread, squared_norms
from topiarist.plan import Plan, Units


class ScaleL1:
    """λ Σ_j |γ_j| on the scales of norms: γ.grad += λ · sign(γ) (Network Slimming, Liu et al. 2017), the sub-gradient.

    The scales are the one-dimensional members of the units that match ``pattern``, "…weight" as torch's norms call
    them; biases are left alone. The paper takes λ = 1e-4 for VGG and 1e-5 for ResNet and DenseNet.

    Raises:
        InputError: λ is not finite or below 0, or the units have no scale.

    Example:
        >>> from topiarist.mask import units_in
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
        >>> _, units = units_in(model, torch.zeros(2, 1, 1, 1))
        >>> penalty = ScaleL1(model, units, 1e-4)
        >>> penalty.names
        ('1.weight',)
    """

    def __init__(self, model: nn.Module, units: Sequence[Units], strength: float, pattern: str = "*weight") -> None:
        self.strength = _checked(strength, "the strength")
        parameters = _parameters(model)
        ones = (m.tensor for u in units for m, p in parameters_with(u, parameters) if p.ndim == 1 and m.dim is not None)
        self.names = tuple(dict.fromkeys(name for name in ones if fnmatch.fnmatchcase(name, pattern)))
        if not self.names:
            raise InputError(
                f"no one-dimensional parameter of the units matches {pattern!r}, there is no scale to press on; "
                "try GroupLasso, or another pattern"
            )

    def __call__(self, model: nn.Module) -> None:
        """Add the sub-gradient to ``.grad``."""
        parameters = _parameters(model)
        for name in self.names:
            _add(parameters[name], self.strength * parameters[name].detach().sign())


class GroupLasso:
    """λ Σ_j √n_j ‖w_j‖₂ over units j, w_j all a unit has, n_j numbers of it (Yuan & Lin 2006; Wen et al. 2016, SSL).

    Three forms of the same: `term` to add to the loss; calling it adds the gradient λ √n_j w_j / ‖w_j‖ to ``.grad``,
    where a unit is not zero; `shrink` after ``optimizer.step()`` is the proximal step
    w_j ← w_j · max(0, 1 − η λ √n_j / ‖w_j‖), which gives exact zeros. A weight of several axes is in a unit of each:
    the proximal step then goes axis by axis.

    Raises:
        InputError: λ is not finite or below 0.

    Example:
        >>> from topiarist.mask import units_in
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> _, units = units_in(model, torch.zeros(1, 2))
        >>> lasso = GroupLasso(units, strength=10.0)
        >>> lasso.shrink(model, lr=1.0)
        >>> float(model[0].weight.detach().abs().sum())
        0.0
    """

    def __init__(self, units: Sequence[Units], strength: float) -> None:
        self.units, self.strength = tuple(units), _checked(strength, "the strength")

    def term(self, model: nn.Module) -> Tensor:
        """The penalty itself, a scalar to add to the loss; at zero units its gradient is zero."""
        parameters, total = _parameters(model), torch.zeros(())
        for units in self.units:
            squares = squared_norms(units, parameters)
            alive = squares > 0
            norms = torch.where(alive, squares, 1.0).sqrt() * alive  # √0 has no gradient to go through
            total = total.to(norms) + (norms * _root_sizes(units, parameters).to(norms)).sum()
        return self.strength * total

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        """Add the gradient to ``.grad``."""
        parameters = _parameters(model)
        for units in self.units:
            norms = squared_norms(units, parameters).sqrt()
            factor = self.strength * _root_sizes(units, parameters).to(norms) / torch.where(norms > 0, norms, 1.0)
            _add_scaled(units, parameters, factor)

    @torch.no_grad()
    def shrink(self, model: nn.Module, lr: float) -> None:
        """The proximal step, in place, for a learning rate η."""
        _checked(lr, "the learning rate")
        parameters = _parameters(model)
        for units in self.units:
            norms = squared_norms(units, parameters).sqrt()
            less = lr * self.strength * _root_sizes(units, parameters).to(norms) / torch.where(norms > 0, norms, 1.0)
            for member, parameter in parameters_with(units, parameters):
                parameter.mul_(spread((1 - less).clamp(min=0), member, parameter, 1.0))


class GrowingL2:
    """λ w on what a plan will remove, λ growing: w.grad += λ_t w, λ_t = min(τ, δ ⌊t / K⌋) (GReg-1, Wang et al. 2021).

    So that little is lost when the plan is carried out, once λ has reached its ceiling τ. Called at every step; of the
    plan only the entries that `topiarist.mask` would zero are pressed on. The paper takes δ = 1e-4, K = 10 for CIFAR
    (5 for ImageNet) and τ = 1.

    Raises:
        InputError: the plan does not fit the model, or a number is out of range.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> penalty = GrowingL2(layer, Plan("weight", {"weight": torch.tensor([True, False])}), every=1, delta=0.5)
        >>> layer.weight.grad = torch.zeros(1, 2)
        >>> penalty(layer)
        >>> penalty.strength, bool(layer.weight.grad[0, 1] == 0)
        (0.5, True)
    """

    def __init__(
        self, model: nn.Module, plan: Plan, *, every: int = 10, delta: float = 1e-4, ceiling: float = 1.0
    ) -> None:
        if every < 1:
            raise InputError(f"the penalty grows every so many steps, 1 or more, got {every!r}")
        self._every, self._delta, self._ceiling = every, _checked(delta, "delta"), _checked(ceiling, "the ceiling")
        self._removed = plan.masks(getattr(model, "_orig_mod", model))
        self._step = 0

    @property
    def strength(self) -> float:
        """λ now."""
        return min(self._ceiling, self._delta * (self._step // self._every))

    @property
    def is_full(self) -> bool:
        """Whether λ has reached its ceiling: time to prune."""
        return self.strength >= self._ceiling

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        """Count a step and add the gradient to ``.grad``."""
        self._step += 1
        parameters = _parameters(model)
        for name, removed in self._removed.items():
            parameter = parameters[name]
            _add(parameter, self.strength * parameter * removed.to(parameter.device))

    def state_dict(self) -> dict[str, int]:
        """How many steps have been."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from `state_dict`."""
        self._step = int(state["step"])


class ImportanceL2:
    """λ γ_k w_k on every unit k, more on those of less importance: γ_k = 2^(4 (I_max − I_k) / (I_max − I_min)).

    DepGraph's sparse training (Fang et al. 2023): I_k = Σ_m ‖w^m_k‖² / num members over all that shares the axis, and
    γ_k from 1, for the most important unit of its axis, to 16. Call `update` once an epoch, it fixes γ; calling the
    object adds λ γ_k w_k to ``.grad``. The paper's scripts take λ = 5e-4 for CIFAR.

    Raises:
        InputError: λ is not finite or below 0.

    Example:
        >>> from topiarist.mask import units_in
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> _, units = units_in(model, torch.zeros(1, 2))
        >>> penalty = ImportanceL2(model, units, strength=1e-4)
        >>> sorted(penalty.factors["0.weight:0"].tolist())[::2]
        [1.0, 16.0]
    """

    def __init__(self, model: nn.Module, units: Sequence[Units], strength: float = 1e-4) -> None:
        self.units, self.strength = tuple(units), _checked(strength, "the strength")
        self.factors: dict[str, Tensor] = {}
        self.update(model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the importance of the weights as they are now."""
        parameters = _parameters(model)
        for units in self.units:
            importance = squared_norms(units, parameters)  # the mean over members is this over a constant
            low, high = importance.min(), importance.max()
            width = torch.where(high > low, high - low, 1.0)
            self.factors[units.name] = torch.exp2(4 * (high - importance) / width)

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        """Add the gradient to ``.grad``."""
        parameters = _parameters(model)
        for units in self.units:
            _add_scaled(units, parameters, self.strength * self.factors[units.name])


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return dict(getattr(model, "_orig_mod", model).named_parameters(remove_duplicate=False))


def _root_sizes(units: Units, parameters: Mapping[str, Tensor]) -> Tensor:
    """√n_j, n_j the numbers that unit j has: ``(num units,)``."""
    ones = {m.tensor: torch.ones_like(p) for m, p in parameters_with(units, parameters)}
    return squared_norms(units, ones).sqrt()


def _add_scaled(units: Units, parameters: Mapping[str, Tensor], factor: Tensor) -> None:
    """``.grad`` += factor_j · w_j."""
    for member, parameter in parameters_with(units, parameters):
        _add(parameter, spread(factor, member, parameter, 0.0) * parameter)


def _add(parameter: Tensor, more: Tensor) -> None:
    if parameter.requires_grad:
        parameter.grad = more.clone() if parameter.grad is None else parameter.grad.add_(more)


def _checked(value: float, what: str) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{what} must be finite and at least 0, got {value!r}")
    return value

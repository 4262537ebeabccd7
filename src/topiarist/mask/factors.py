"""Weights as products of factors, with a gate on each rank-one component: W = P · diag(z) · Q (Wang et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.errors import BudgetError, InputError
from topiarist.mask.gates.base import Gate
from topiarist.mask.replaced import Replaced
from topiarist.mask.units import units_in
from topiarist.plan import Budget

_UNITS = ("sparsity", "compression", "params", "macs")


class Factors(nn.Module):
    """The weights of linear layers and convolutions, as P · diag(z) · Q of ranks for which that is no more to pay.

    P is (outputs, r) and Q (r, inputs · places) with r = ⌊in · out / (in + out)⌋; they begin as the largest r singular
    components of the weight. Each forward pass runs with the product: the model keeps its class and its keys, and
    nothing in it changes but two hooks while attached. Gates are drawn anew at each pass in training mode, and are
    `Gate.deterministic` in evaluation mode. Hand `parameters` and `others` to optimizers, without weight decay (a norm
    of P and Q would be made up for by z); `kept` and `fold` end it.

    Args:
        model: the model.
        example_inputs: a tensor, a tuple or a dict of arguments that it runs on.
        make: makes a gate for so many ranks, as ``HardConcrete`` does.
        keep: patterns of modules whose weights stay whole.

    Raises:
        InputError: no layer has a rank that pays, or a pattern matches nothing.
        TraceError: the model does not run on ``example_inputs``.

    Example:
        >>> from topiarist.mask.gates import ScalarGate
        >>> layer = nn.Sequential(nn.Linear(8, 8, bias=False))
        >>> with torch.no_grad():
        ...     _ = layer[0].weight.copy_(torch.ones(8, 8))  # of rank 1
        >>> factors = Factors(layer, torch.ones(1, 8), ScalarGate)
        >>> factors.ranks, bool(torch.allclose(factors.product("0.weight"), torch.ones(8, 8), atol=1e-5))
        ({'0.weight': 4}, True)
    """

    def __init__(
        self, model: nn.Module, example_inputs: Any, make: Callable[[int], Gate], keep: Sequence[str] = ()
    ) -> None:
        super().__init__()
        model = getattr(model, "_orig_mod", model)
        self._axes, units = units_in(model, example_inputs, "rank", keep)
        self.names = tuple(each.name for each in units)
        weights = {name: p for name, p in model.named_parameters() if name in self.names}
        self._shapes = {name: (len(w), w[0].numel()) for name, w in weights.items()}
        self.ranks = {name: num_in * num_out // (num_in + num_out) for name, (num_out, num_in) in self._shapes.items()}
        halves = [_halves(weights[name], self.ranks[name]) for name in self.names]
        self.left = nn.ParameterList(p for p, _ in halves)
        self.right = nn.ParameterList(q for _, q in halves)
        self.gates = nn.ModuleList(make(self.ranks[name]).to(weights[name].device) for name in self.names)
        self._replaced = Replaced(model, self.names, self._products)  # holds the model: it is none of our submodules

    def attach(self) -> None:
        """Multiply from now on."""
        self._replaced.attach()

    def detach(self) -> None:
        """Take the factors off; the weights are those of before."""
        self._replaced.detach()

    @property
    def others(self) -> list[nn.Parameter]:
        """The parameters of the model that have no factors."""
        named = self._replaced.model.named_parameters()
        return [p for name, p in named if name not in self.names and p.requires_grad]

    def product(self, name: str, kept: Tensor | None = None) -> Tensor:
        """P · diag(z) · Q of the weight ``name``, (outputs, inputs · places); of the components ``kept`` (bool) alone.

        With ``kept`` their gates are soft: those that are left keep their factor, whatever their number.
        """
        place = self.names.index(name)
        gate = self._gate(name)
        if kept is None:
            z = gate.sample() if self._replaced.model.training else gate.deterministic()
        else:
            z = gate.soft() * kept
        product: Tensor = (self.left[place] * z) @ self.right[place]
        return product

    def costs(self, unit: str) -> tuple[dict[str, float], float, float]:
        """In params or macs: of one component of each weight, of all that has no factors, and of the dense model."""
        if unit not in _UNITS:
            raise InputError(f"factors are counted in {', '.join(_UNITS)}, got a budget of {unit}")
        of_weights = self._axes.macs_by_tensor() if unit == "macs" else {}
        whole = self._axes.num_macs() if unit == "macs" else self._axes.num_params()
        dense = {name: float(of_weights.get(name, i * o)) for name, (o, i) in self._shapes.items()}
        each = {name: dense[name] / (i * o) * (i + o) for name, (o, i) in self._shapes.items()}
        return each, whole - sum(dense.values()), whole

    def target(self, budget: Budget) -> float:
        """The fraction of the factors that is to go for the model to meet the budget; of a sparsity, that itself.

        Raises:
            BudgetError: what has no factors is more than the budget.
            InputError: the budget is in a unit that factors do not know.
        """
        each, rest, whole = self.costs(budget.unit)
        if budget.unit == "sparsity":
            return budget.value
        allowed = (1 - budget.removed) * whole - rest
        least = sum(each.values())
        if allowed < least:
            raise BudgetError(
                f"asked for {budget.unit}={budget.value:g}, nearest is {(rest + least) / whole:.4g} of what it has: "
                "what has no factors, and one component of each weight that has"
            )
        return max(0.0, 1 - allowed / sum(each[name] * self.ranks[name] for name in self.names))

    def expected_sparsity(self, unit: str = "params") -> Tensor:
        """ŝ = 1 − Σ_l c_l E‖z_l‖₀ / Σ_l c_l r_l, c_l = in_l + out_l the cost of a component in ``unit``, a scalar."""
        each, _, _ = self.costs(unit)
        left = torch.stack([each[name] * self._gate(name).expected_l0().sum() for name in self.names]).sum()
        return 1 - left / sum(each[name] * self.ranks[name] for name in self.names)

    def penalty(self) -> Tensor:
        """The sum of the gates' own penalties, a scalar."""
        return torch.stack([self._gate(name).penalty() for name in self.names]).sum()

    @torch.no_grad()
    def kept(self, target: float, unit: str = "params") -> dict[str, Tensor]:
        """Which components stay when so much goes, the least likely first: bool (r,) by weight.

        One of each weight stays at least. As much goes as is nearest to ``target`` for ``unit="sparsity"``, and at
        least as much for others.
        """
        each, _, _ = self.costs(unit)
        found = {name: torch.ones(self.ranks[name], dtype=torch.bool) for name in self.names}
        likely = {name: self._gate(name).expected_l0().cpu() for name in self.names}
        left = sum(each[name] * self.ranks[name] for name in self.names)
        allowed = (1 - target) * left
        ranking = sorted((float(p), name, i) for name in self.names for i, p in enumerate(likely[name]))
        for _, name, i in ranking:
            slack = each[name] / 2 if unit == "sparsity" else 1e-9 * allowed
            if left - allowed <= slack:
                break
            if int(found[name].count_nonzero()) > 1:
                found[name][i] = False
                left -= each[name]
        return found

    @torch.no_grad()
    def fold(self, kept: Mapping[str, Tensor]) -> None:
        """Take the factors off and give the weights the products of what is ``kept``, for good."""
        parameters = dict(self._replaced.model.named_parameters())
        for name in self.names:
            parameter = parameters[name]
            parameter.copy_(self.product(name, kept[name].to(parameter.device)).view_as(parameter))
        self.detach()

    def _gate(self, name: str) -> Any:
        return self.gates[self.names.index(name)]

    def _products(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.product(name).view_as(weight) for name, weight in weights.items()}


def _halves(weight: Tensor, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """U √σ and √σ Vᵀ of the largest singular components."""
    u, sigma, v = torch.linalg.svd(weight.detach().flatten(1).double(), full_matrices=False)
    root = sigma[:rank].sqrt()
    return tuple(nn.Parameter(half.to(weight).contiguous()) for half in (u[:, :rank] * root, root[:, None] * v[:rank]))  # type: ignore[return-value]

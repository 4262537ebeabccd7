"""Gates on the units of a model: each forward pass runs with the gated weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.errors import InputError, nearest
from topiarist.graph import Axes
from topiarist.mask.gates.base import Gate
from topiarist.mask.replaced import Replaced
from topiarist.mask.units import parameters_with, spread, units_in
from topiarist.plan import Member, Units
from topiarist.saliency.base import Slices
from topiarist.structure import Structure


class Gates(nn.Module):
    """A gate for every unit of a model: its weights are multiplied by z, where they read the unit.

    W′ = W · z_j on the entries that sum over unit j (the input channels of all that reads an axis), so that norms in
    between see the unit as it is, and z_j = 0 is the unit's removal wherever that is exact. Where activations are
    summed over the axis, as queries times keys are, what makes it is multiplied instead. Gates of single weights
    multiply these.

    The gates are drawn anew at each forward pass in training mode, and are `Gate.deterministic` in evaluation mode.
    Hand `parameters` to an optimizer, without weight decay; add `penalty`, or a function of `expected_sparsity`, to
    the loss; call `project` after its step. Then ``topiarist.plan(…, saliency=gates.score)`` cuts what has closed,
    and `fold` leaves the soft values of the others in the weights.

    Args:
        model: the model; nothing in it changes but two hooks while attached.
        example_inputs: a tensor, a tuple or a dict of arguments that it runs on.
        make: makes a gate for so many units, as ``HardConcrete`` does.
        structure: what one unit is; ``keep`` as in `topiarist.plan`.

    Raises:
        InputError: the structure is not known, or nothing of it may go.
        TraceError: the model does not run on ``example_inputs``.

    Example:
        >>> from topiarist.mask.gates import ScalarGate
        >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
        >>> gates = Gates(model, torch.zeros(1, 2), ScalarGate)
        >>> _ = nn.init.zeros_(gates["0.weight:0"].value)
        >>> gates.attach()
        >>> float(model(torch.ones(1, 2)).detach())
        0.0
        >>> gates.detach()
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        make: Callable[[int], Gate],
        structure: str | Structure = "channel",
        keep: Sequence[str] = (),
    ) -> None:
        super().__init__()
        model = getattr(model, "_orig_mod", model)
        axes, self.units = units_in(model, example_inputs, structure, keep)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._members = {units.name: _gated(axes, units, parameters) for units in self.units}
        first = next(iter(parameters.values()))
        self.gates = nn.ModuleList(make(units.num) for units in self.units).to(first.device)
        self._costs = {u.name: sum(p.numel() for _, p in parameters_with(u, parameters)) / u.num for u in self.units}
        names = dict.fromkeys(member.tensor for members in self._members.values() for member in members)
        self._replaced = Replaced(model, [*names], self._gate)  # which holds the model: it is none of our submodules

    def __getitem__(self, name: str) -> Gate:
        for units, gate in zip(self.units, self.gates, strict=True):
            if units.name == name:
                assert isinstance(gate, Gate)  # noqa: S101 for the type checker: `make` says so
                return gate
        raise InputError(f"no units are called {name!r} ({nearest(name, [u.name for u in self.units])})")

    def attach(self) -> None:
        """Multiply from now on."""
        self._replaced.attach()

    def detach(self) -> None:
        """Take the gates off, without a trace; they keep what they have learnt."""
        self._replaced.detach()

    @torch.no_grad()
    def fold(self) -> None:
        """Take the gates off and multiply the weights by `Gate.deterministic` for good."""
        parameters = dict(self._replaced.model.named_parameters(remove_duplicate=False))
        for units in self.units:
            for member in self._members[units.name]:
                parameter = parameters[member.tensor]
                parameter.mul_(spread(self[units.name].deterministic(), member, parameter, 1.0))
        self.detach()

    @torch.no_grad()
    def factors(self) -> dict[str, Tensor]:
        """What each gated weight is multiplied by in evaluation mode, by its name; broadcasts against the weight."""
        parameters = dict(self._replaced.model.named_parameters(remove_duplicate=False))
        found: dict[str, Tensor] = {}
        for units in self.units:
            for member in self._members[units.name]:
                z = spread(self[units.name].deterministic(), member, parameters[member.tensor], 1.0)
                found[member.tensor] = z * found[member.tensor] if member.tensor in found else z
        return found

    def penalty(self) -> Tensor:
        """The sum of the gates' own penalties, a scalar."""
        return torch.stack([self[units.name].penalty() for units in self.units]).sum()

    def density(self) -> Tensor:
        """The mean over all units of P(z ≠ 0), a scalar."""
        return torch.cat([self[units.name].expected_l0() for units in self.units]).mean()

    def expected_sparsity(self) -> Tensor:
        """1 − Σ_j n_j P(z_j ≠ 0) / Σ_j n_j, n_j the parameters of unit j (Wang, Wohlwend, Lei 2020), a scalar."""
        left = [self._costs[units.name] * self[units.name].expected_l0().sum() for units in self.units]
        return 1 - torch.stack(left).sum() / sum(self._costs[units.name] * units.num for units in self.units)

    def project(self) -> None:
        """Bring the gates back to where they may be, after the optimizer's step."""
        for units in self.units:
            self[units.name].project()

    def score(self, slices: Slices) -> Tensor:
        """The gates as a criterion: what each unit is multiplied by in evaluation mode, floats ``(num units,)``.

        Raises:
            InputError: these are units of another structure or model.
        """
        return self[slices.units.name].deterministic()

    def _gate(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        gated = dict(weights)
        for units in self.units:
            gate = self[units.name]
            z = gate.sample() if self._replaced.model.training else gate.deterministic()
            for member in self._members[units.name]:
                gated[member.tensor] = gated[member.tensor] * spread(z, member, weights[member.tensor], 1.0)
        return gated


def _gated(axes: Axes, units: Units, parameters: Mapping[str, Tensor]) -> list[Member]:
    """Where the units' effect can be multiplied."""
    if units.members and units.members[0].dim is None:
        return list(units.members)
    readers = [m for m in axes.readers(units.name) if m.tensor in parameters]
    if readers:
        return readers
    makers = [m for m in axes.makers(units.name) if m.tensor in parameters]
    owners = {m.tensor.rpartition(".")[0] for m in makers}
    biases = [m for m, p in parameters_with(units, parameters) if p.ndim == 1]
    return [*makers, *(m for m in biases if m.tensor.rpartition(".")[0] in owners)] or list(units.members)

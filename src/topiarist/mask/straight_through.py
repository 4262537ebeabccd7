"""Masks chosen at every forward pass, with a gradient for what they hide: dense shadow weights, or movement scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from topiarist import allocation as allocations
from topiarist.allocation import Allocation, Candidates
from topiarist.allocation.base import check_level
from topiarist.errors import InputError
from topiarist.mask.replaced import Replaced
from topiarist.mask.units import units_in
from topiarist.plan import Plan


class StraightThrough(nn.Module):
    """Forward with W′ = W ⊙ M, M the weights of the highest scores; backward straight through M.

    ``scores="magnitude"``: M from |W|, ∂L/∂W = ∂L/∂W′, dense: hidden weights learn on and may return (Bengio et al.
    2013). ``"movement"``: M from scores S, from 0, that learn: ∂L/∂S = ∂L/∂W′ ⊙ W and ∂L/∂W = ∂L/∂W′ ⊙ M (Sanh, Wolf,
    Rush 2020); what moves away from zero gathers a high score. Hand `parameters`, which are S, to an optimizer of their
    own, without weight decay (the paper: learning rate 1e-2, 3e-5 for the weights).

    Set `sparsity` as the training goes, for example to ``schedule(progress, final)`` with the schedule "movement";
    at the end `plan` says what is hidden, and `fold` zeroes it for good.

    Args:
        model: the model; nothing in it changes but two hooks while attached.
        example_inputs: a tensor, a tuple or a dict of arguments that it runs on.
        allocation: how the sparsity is spread: ``"uniform"`` for the top of each matrix, ``"global"``, ….
        keep: patterns of modules whose weights stay whole.

    Raises:
        InputError: an argument cannot be used.
        TraceError: the model does not run on ``example_inputs``.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 0.5), layer.weight.data[0, 1].fill_(2.0)
        >>> masks = StraightThrough(layer, torch.ones(1, 2), scores="magnitude", sparsity=0.5)
        >>> masks.attach()
        >>> out = layer(torch.ones(1, 2))
        >>> out.sum().backward()
        >>> float(out.detach()), layer.weight.grad.tolist()
        (2.0, [[1.0, 1.0]])
        >>> masks.detach()
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        scores: Literal["movement", "magnitude"] = "movement",
        sparsity: float = 0.0,
        allocation: str | Mapping[str, float] | Allocation = "uniform",
        keep: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if scores not in ("movement", "magnitude"):
            raise InputError(f"scores are 'movement' or 'magnitude', got {scores!r}")
        check_level(sparsity)
        model = getattr(model, "_orig_mod", model)
        _, self.units = units_in(model, example_inputs, "weight", keep)
        self.sparsity, self._allocation = sparsity, allocations.resolve(allocation)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        moving = [parameters[u.name] for u in self.units] if scores == "movement" else []
        self.scores = nn.ParameterList(nn.Parameter(torch.zeros_like(weight)) for weight in moving)
        names = [units.name for units in self.units]
        self._replaced = Replaced(model, names, self._masked)  # which holds the model: it is none of our submodules

    def attach(self) -> None:
        """Hide from now on."""
        self._replaced.attach()

    def detach(self) -> None:
        """Take the masks off, without a trace."""
        self._replaced.detach()

    def plan(self) -> Plan:
        """What is hidden now; ``topiarist.mask(model, plan)`` holds it at zero from there on."""
        parameters = dict(self._replaced.model.named_parameters(remove_duplicate=False))
        removed = self._removed({units.name: parameters[units.name] for units in self.units})
        total = sum(gone.numel() for gone in removed.values())
        share = sum(int(gone.count_nonzero()) for gone in removed.values()) / total
        return Plan("weight", removed, requested={"sparsity": self.sparsity}, achieved={"sparsity": share})

    @torch.no_grad()
    def fold(self) -> Plan:
        """Take the masks off and zero what they hide, once; returns what that is."""
        plan, model = self.plan(), self._replaced.model
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, removed in plan.masks(model).items():
            parameters[name].masked_fill_(removed, 0)
        self.detach()
        return plan

    @torch.no_grad()
    def _removed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        by_name = {u.name: s for u, s in zip(self.units, self.scores, strict=False)}
        scores = {n: (by_name[n] if by_name else w.abs()).detach().flatten() for n, w in weights.items()}
        return self._allocation(Candidates(self.units, scores, lambda name: weights[name].flatten()), self.sparsity)

    def _masked(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        removed, masked = self._removed(weights), {}
        for place, (name, weight) in enumerate(weights.items()):
            gone = removed[name].view(weight.shape).to(weight.device)
            if self.scores:
                score = self.scores[place].to(weight)
                masked[name] = weight.masked_fill(gone, 0) + weight.detach() * (score - score.detach())
            else:
                masked[name] = weight - (weight * gone).detach()
        return masked

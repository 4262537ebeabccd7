"""Mask ensembles: one set of weights under many masks, whose predictions are averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from topiarist.errors import InputError
from topiarist.plan import Plan


class MaskEnsemble(nn.Module):
    """The mean prediction of a network under several masks: log p̄(y|x), p̄ = 1/M Σ_k softmax f(x; w ⊙ m_k).

    The average over random masks of Bouchard-Côté, Petrov, Klein 2009, "Randomized pruning", as of a finite dropout
    ensemble (Gal and Ghahramani 2016): M runs of a cheap network, whose mean has 1/M of the variance of one. Classes
    are in dimension 1, and probabilities are averaged, not logits. Batch norms keep the statistics of the whole
    network. The masks are buffers; the weights of ``model`` stay whole.

    Raises:
        InputError: there is no plan, or one does not fit the model.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.eye(2))
        >>> plans = [Plan("weight", {"weight": torch.tensor([gone, False, False, not gone])}) for gone in (True, False)]
        >>> MaskEnsemble(net, plans)(torch.ones(1, 2)).exp()
        tensor([[0.5000, 0.5000]], grad_fn=<ExpBackward0>)
    """

    def __init__(self, model: nn.Module, plans: Sequence[Plan]) -> None:
        super().__init__()
        if not plans:
            raise InputError("an ensemble has 1 mask or more, got none")
        self.model, self.num_masks = model, len(plans)
        masks = [plan.masks(model) for plan in plans]
        self._names = sorted({name for mask in masks for name in mask})
        shapes = dict(model.named_parameters(remove_duplicate=False))
        for place, name in enumerate(self._names):
            none = torch.zeros(shapes[name].shape, dtype=torch.bool, device=shapes[name].device)
            self.register_buffer(f"removed_{place}", torch.stack([mask.get(name, none) for mask in masks]))

    def each(self, *args: Any, **kwargs: Any) -> Iterator[Tensor]:
        """The log-probabilities under one mask after the other."""
        weights = dict(self.model.named_parameters(remove_duplicate=False))
        for number in range(self.num_masks):
            held = {n: weights[n].masked_fill(self._removed(i)[number], 0) for i, n in enumerate(self._names)}
            yield functional_call(self.model, held, args, kwargs).log_softmax(1)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The log of the mean probabilities: (batch, classes, …)."""
        found = torch.stack(list(self.each(*args, **kwargs)))
        return found.logsumexp(0) - torch.tensor(self.num_masks).log().to(found)

    def moments(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The mean of the probabilities and the variance of that mean, estimated from the spread of the masks:
        (batch, classes, …) each; the variance is NaN for a single mask."""
        found = torch.stack(list(self.each(*args, **kwargs))).exp()
        spread = found.var(0, correction=1) if self.num_masks > 1 else torch.full_like(found[0], torch.nan)
        return found.mean(0), spread / self.num_masks

    def _removed(self, place: int) -> Tensor:
        removed: Tensor = getattr(self, f"removed_{place}")
        return removed

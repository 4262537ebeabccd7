"""The diagonal of the Hessian of the loss: of its Gauss–Newton part exactly, or of itself by random probes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.stats.examples import flat_outputs, output_roots
from topiarist.stats.row_squares import row_squares
from topiarist.stats.statistic import Batch, PerParameter, Subject

_NUM_OUTPUTS = 128  # an example; with more, as many backward passes cost more than probes
METHODS = ("auto", "gauss-newton", "hutchinson")


@dataclass(frozen=True)
class HessianDiagonal:
    """Starts the statistic h = diag(∂²L/∂w²), the mean over batches.

    ``"gauss-newton"``: h = E_n Σ_r (J_nᵀ s_nr)² with Σ_r s_nr s_nrᵀ the Hessian of the loss by the outputs; exact for
    the Gauss–Newton matrix, never negative, and as many backward passes as there are outputs. ``"hutchinson"``:
    h = E_v[v ⊙ Hv] over ``num_probes`` draws of signs v for each batch (Hutchinson 1990), which estimates the true
    Hessian, set to zero where negative. ``"auto"`` takes the first where an example has at most 128 outputs.
    """

    method: str = "auto"
    num_probes: int = 8

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"the Hessian's diagonal is found by one of {[*METHODS]}, got {self.method!r}")
        if self.num_probes < 1:
            raise InputError(f"num_probes must be 1 or more, got {self.num_probes}")

    def __call__(self, subject: Subject) -> PerParameter:
        """Nothing is collected yet."""
        return _Diagonal(subject, self.method, self.num_probes)


class _Diagonal(PerParameter):
    def __init__(self, subject: Subject, method: str, num_probes: int) -> None:
        super().__init__(subject)
        self.method, self.num_probes = method, num_probes
        self.keeps_graph = method != "gauss-newton"
        self._generator = torch.Generator().manual_seed(0)
        self._number = 0

    def on_batch(self, batch: Batch) -> None:
        if self.method == "gauss-newton" or (self.method == "auto" and _is_small(batch)):
            for name, squares in row_squares(batch, output_roots(batch)).items():
                self.values[name] += squares / batch.size
        else:
            self._probe(batch)
        self._number = batch.number

    def _probe(self, batch: Batch) -> None:
        leaves = batch.subject.parameters
        assert batch.loss is not None  # noqa: S101 it reads the loss
        found = torch.autograd.grad(batch.loss, [*leaves.values()], create_graph=True, allow_unused=True)
        gradients = {n: g for n, g in zip(leaves, found, strict=True) if g is not None and g.requires_grad}
        for _ in range(self.num_probes if gradients else 0):
            signs = {n: self._signs(leaves[n]) for n in gradients}
            product = torch.stack([(signs[n] * g).sum() for n, g in gradients.items()]).sum()
            curved = torch.autograd.grad(product, [*leaves.values()], retain_graph=True, allow_unused=True)
            for (name, leaf), row in zip(leaves.items(), curved, strict=True):
                if row is not None:
                    self.values[name] += signs.get(name, torch.zeros_like(leaf)) * row.detach() / self.num_probes

    def _signs(self, like: Tensor) -> Tensor:
        drawn = torch.randint(2, like.shape, generator=self._generator)
        return (2 * drawn - 1).to(device=like.device, dtype=like.dtype)

    def end(self, turn: int) -> None:
        for total in self.values.values():
            total.div_(self._number).clamp_(min=0)


def _is_small(batch: Batch) -> bool:
    try:
        return flat_outputs(batch.outputs, batch.size).shape[1] <= _NUM_OUTPUTS
    except InputError:
        return False

"""The Gauss–Newton matrix of the loss, whole on small networks and by blocks on large ones, and its inverse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from topiarist.errors import InputError
from topiarist.plan import Units
from topiarist.stats.cut import rows_of
from topiarist.stats.examples import output_roots, rows
from topiarist.stats.statistic import Batch, Statistic, Subject


@dataclass(frozen=True)
class InverseHessian:
    """Starts the statistic H = 1/P Σ_n Σ_r J_nᵀ s_nr s_nrᵀ J_n + αI over P examples, and its inverse.

    Σ_r s_nr s_nrᵀ is the Hessian of the loss by the outputs, J_n their Jacobian. Over all parameters together where
    these are at most ``whole``, else over blocks of ``block`` consecutive entries of each tensor that units live in.
    α is ``damping`` times the mean of the diagonal, or ``damping`` itself with ``relative=False``.
    """

    damping: float = 0.01
    relative: bool = True
    whole: int = 5000
    block: int = 128

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise InputError(f"damping must be positive, got {self.damping!r}")
        if self.whole < 0 or self.block < 1:
            raise InputError(f"whole and block are numbers of weights, got {self.whole!r} and {self.block!r}")

    def __call__(self, subject: Subject) -> Blocks:
        """Nothing is collected yet."""
        return Blocks(subject, self)


@dataclass(eq=False)
class _Group:
    """Tensors laid end to end, cut into blocks: ``matrix`` is float64 (blocks, size, size)."""

    names: tuple[str, ...]
    num: int
    size: int
    matrix: Tensor = field(default_factory=lambda: torch.zeros(()))

    def flat(self, tensors: Mapping[str, Tensor], dims: int = 0) -> Tensor:
        """Tensors with ``dims`` dimensions in front as float64 (…, blocks, size), zero where the last block ends."""
        parts = [tensors[name].detach().double().flatten(dims) for name in self.names]
        joined = torch.cat(parts, dim=-1)
        padded = F.pad(joined, (0, -self.num % self.size))
        return padded.reshape(*joined.shape[:-1], -1, self.size)

    def marked(self, marks: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensor:
        """Bool of shape (blocks, size) from marks of some of the tensors."""
        every = {n: marks.get(n, torch.zeros_like(like[n], dtype=torch.bool)) for n in self.names}
        return self.flat(every) > 0

    def back(self, blocks: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """From (blocks, size) to tensors of their shapes."""
        flat = blocks.flatten()[: self.num]
        parts = torch.split(flat, [tensors[name].numel() for name in self.names])
        return {
            n: part.reshape(tensors[n].shape).to(tensors[n].dtype) for n, part in zip(self.names, parts, strict=True)
        }


class Blocks(Statistic):
    """The matrix, its inverse, and what is best for the weights that stay when others go."""

    def __init__(self, subject: Subject, options: InverseHessian) -> None:
        self.subject, self.options = subject, options
        sizes = {name: p.numel() for name, p in subject.parameters.items()}
        held = {m.tensor for units in subject.units for m in units.members}
        if sum(sizes.values()) <= options.whole:
            num = sum(sizes.values())
            self.groups = [_Group(tuple(sizes), num, num)]
        else:
            self.groups = [_Group((n,), num, min(num, options.block)) for n, num in sizes.items() if n in held]
        self._inverses: dict[str, Tensor] = {}
        self._num = 0

    @property
    def is_whole(self) -> bool:
        """Whether there is one block for everything."""
        return len(self.groups) == 1 and self.groups[0].size == self.groups[0].num

    def on_batch(self, batch: Batch) -> None:
        """Add the rows of a batch's examples."""
        for chunk in rows(batch, output_roots(batch)):
            for group in self.groups:
                found = group.flat(chunk, dims=2).flatten(0, 1).movedim(0, 1)  # (blocks, rows, size)
                group.matrix = group.matrix + found.mT @ found
        self._num += batch.size

    def end(self, turn: int) -> None:
        """From sums to means, and damp."""
        for group in self.groups:
            group.matrix /= self._num
            diagonal = group.matrix.diagonal(dim1=1, dim2=2)
            usual = diagonal.sum() / group.num if self.options.relative else 1.0
            alpha = self.options.damping * usual
            diagonal += torch.where(torch.as_tensor(alpha) == 0, 1.0, alpha)  # a loss that is flat has no scale

    def of(self, units: Units) -> Tensor:
        """The blocks of H⁻¹ that belong to units, with what was removed before kept at zero.

        (num units, k, k) for units of k weights where the matrix is whole or k = 1; else its diagonal, (num units, k).
        """
        joined = _joined(units, self._diagonals)
        joined = torch.where(joined == 0, 1.0, joined)  # where a unit has fewer weights than others
        if joined.shape[1] == 1:
            return joined[:, :, None]
        if not self.is_whole:
            return joined
        (group,) = self.groups
        places = {n: torch.empty(self.subject.parameters[n].shape, dtype=torch.long) for n in group.names}
        index = _joined(units, group.back(torch.arange(group.num) + 1, places)).long()
        inverse = F.pad(self._inverse(group)[0], (1, 0, 1, 0))  # index 0: no weight
        index = index.to(inverse.device)
        found = torch.stack([inverse[i[:, None], i] for i in index])
        return found + torch.diag_embed((index == 0).double())

    @cached_property
    def _diagonals(self) -> dict[str, Tensor]:
        """The diagonal of the inverse in the shapes of parameters."""
        found: dict[str, Tensor] = {}
        for group in self.groups:
            like = {n: self.subject.parameters[n].double() for n in group.names}
            found.update(group.back(self._inverse(group).diagonal(dim1=1, dim2=2), like))
        return found

    def _inverse(self, group: _Group) -> Tensor:
        key = group.names[0]
        if key not in self._inverses:
            weights = {n: self.subject.parameters[n] for n in group.names}
            kept = _restricted(group.matrix, group.marked(self.subject.removed, weights))
            self._inverses[key] = torch.cholesky_inverse(torch.linalg.cholesky(kept))
        return self._inverses[key]

    def without(self, weights: Mapping[str, Tensor], removed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights that minimise ½ δᵀHδ with those ``removed`` at zero: H_RR δ_R = H_RQ w_Q for those that stay."""
        changed: dict[str, Tensor] = {}
        for group in self.groups:
            if not any(name in removed for name in group.names):
                continue
            own = {n: weights[n] for n in group.names}
            gone = group.marked(removed, own)
            flat = group.flat(own)
            lost = torch.where(gone, flat, 0)
            pull = torch.where(gone, 0, (group.matrix @ lost[:, :, None])[:, :, 0])
            factor = torch.linalg.cholesky(_restricted(group.matrix, gone))
            moved = torch.cholesky_solve(pull[:, :, None], factor)[:, :, 0]
            changed.update(group.back(torch.where(gone, 0, flat + moved), own))
        return changed


def _joined(units: Units, tensors: Mapping[str, Tensor]) -> Tensor:
    """What units have in all of their members, side by side: (num units, k)."""
    parts = rows_of(units, tensors)
    return torch.cat(parts, dim=1) if parts else torch.zeros(units.num, 0, dtype=torch.float64)


def _restricted(matrix: Tensor, out: Tensor) -> Tensor:
    """The matrix with rows and columns that are ``out`` replaced by those of the identity: (blocks, size, size)."""
    stay = (~out).to(matrix.dtype)
    return matrix * stay[:, :, None] * stay[:, None, :] + torch.diag_embed(1 - stay)

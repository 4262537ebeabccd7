"""Structure ``rank``: the components of a weight's singular value decomposition (Denton et al. 2014).

W = U · diag(σ) · Vᵀ, a convolution as the matrix (outputs, inputs × places) of its im2col product. With r of the
components, U_r · (U_rᵀ W) is the nearest matrix of rank r (Eckart, Young 1936), in two layers of r (inputs + outputs)
numbers. Weighted by the Gram matrix G = Σ x xᵀ of what the layer is multiplied by, the components are those of W · G^½,
and the error of the layer's *outputs* is what is least: ‖(W − W_r) X‖² = Σ of the σ² that go.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from topiarist.errors import InputError, nearest
from topiarist.graph import Axes, Axis
from topiarist.graph.factored import KINDS
from topiarist.graph.groups import TensorInfo
from topiarist.graph.tracked import Cost
from topiarist.plan import Member, Units
from topiarist.stats import Gram, collect_inputs


@dataclass(frozen=True)
class Rank:
    """One unit a component of a linear layer or a convolution without groups; one at least of each layer stays.

    A layer of r components costs r · (inputs · places + outputs) instead of inputs · places · outputs. Where that is
    not less, nothing goes from the layer: it stays one dense layer with all of its rank, and counts so. What a
    criterion sees of a component is σ as its one weight, and ∂L/∂σ = uᵀ (∂L/∂W) z, with W = Σ u σ zᵀ, as its gradient.

    Args:
        grams: by weight, G of shape (inputs · places, inputs · places); see `Rank.weighted`. None: as if G were 1.
    """

    grams: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    is_physical: ClassVar[bool] = True

    @classmethod
    def weighted(cls, model: nn.Module, data: Iterable[Any]) -> Rank:
        """The structure that weighs errors by what the layers are multiplied by on ``data``: batches of inputs, or of
        inputs and targets.

        Raises:
            InputError: there are no batches.
        """
        names = {
            f"{name}.weight" if name else "weight": Gram()
            for name, module in model.named_modules()
            if type(module) in KINDS and getattr(module, "groups", 1) == 1
        }
        collect_inputs(model, data, names)
        return cls({name: gram.matrix[0] for name, gram in names.items() if gram.count})

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per layer for which a lower rank pays.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or there is no such layer.
        """
        for pattern in keep:
            if not fnmatch.filter(axes.modules, pattern):
                raise InputError(f"keep={pattern!r} matches no module ({nearest(pattern, axes.modules)})")
        found = []
        for name in axes.weights():
            layer = name.rpartition(".")[0]
            if not _can_be_factored(axes, name) or any(fnmatch.fnmatch(layer, pattern) for pattern in keep):
                continue
            num_out, num_in = _matrix_shape(axes, name)
            num = min(num_out, num_in)
            member = Member(name, 0, view=partial(_diagonal, self.grams.get(name)))
            found.append(Units(name, num, (member,), layer, axes.modules[layer], minimum=1, modules=(layer,)))
        if not found:
            raise InputError("the model has no linear layer or convolution of which a lower rank pays; try 'channel'")
        return found

    def settled(self, axes: Axes, units: Sequence[Units], removed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same removal without layers for which it does not pay: they keep all."""
        found = dict(removed)
        for each in units:
            if each.name in removed and _num_kept(removed[each.name]) > best_paying(*_matrix_shape(axes, each.name)):
                found[each.name] = torch.zeros_like(removed[each.name])
        return found

    def remaining(self, axes: Axes, units: Sequence[Units], removed: Mapping[str, Tensor]) -> Axes:
        """What is left to pay for: two weights in the place of one."""
        ranks = {u.name: _num_kept(removed[u.name]) for u in units if u.name in removed and bool(removed[u.name].any())}
        tensors: dict[str, TensorInfo] = {}
        for name, info in axes.tensors.items():
            if name in ranks:
                inside = Axis(ranks[name])
                tensors[f"{name}/0"] = replace(info, axes=(inside, *info.axes[1:]))
                tensors[f"{name}/1"] = replace(info, axes=(info.axes[0], inside))
            else:
                tensors[name] = info
        costs: list[Cost] = []
        for cost in axes.costs:
            rank = ranks.get(cost.tensor or "")
            costs.extend([cost] if rank is None else _two(axes, cost, rank))
        return axes.with_bill(tensors, costs)

    def rewriting(
        self, axes: Axes, units: Sequence[Units], removed: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """The part of a plan that says on which basis each layer is projected."""
        del axes
        bases, left = {}, {}
        for each in (each for each in units if each.name in removed):
            gone = removed[each.name]
            left[each.name] = torch.arange(each.num) >= _num_kept(gone)  # by now components are those that stay
            if bool(gone.any()):
                basis = components(tensors[each.name], self.grams.get(each.name))[0][:, ~gone.cpu()]
                bases[each.name] = basis.to(tensors[each.name].dtype).cpu()
        return {"removed": left, "bases": bases}


def best_paying(num_out: int, num_in: int) -> int:
    """The highest rank r with r · (in + out) < in · out; 0 where there is none.

    Example:
        >>> best_paying(100, 300)
        74
    """
    return (num_out * num_in - 1) // (num_out + num_in)


def components(weight: Tensor, gram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """U (outputs, n) and σ (n,) of W, or of W · G^½, in double precision, the largest first.

    Example:
        >>> components(torch.diag(torch.tensor([3.0, 4.0])))[1]
        tensor([4., 3.], dtype=torch.float64)
    """
    matrix = weight.detach().flatten(1).double()
    num = min(matrix.shape)
    if gram is not None:
        values, vectors = torch.linalg.eigh(gram.to(matrix))
        matrix = matrix @ (vectors * values.clamp(min=0).sqrt())
    u, sigma, _ = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :num], sigma[:num]


def _diagonal(gram: Tensor | None, weight: Tensor, tensor: Tensor) -> Tensor:
    """σ of the weight itself; of a gradient G, uᵀ G z = Σ (uᵀ G) (uᵀ W) / σ: (num components, 1)."""
    u, sigma = components(weight, gram)
    if tensor is weight:
        return sigma[:, None]
    matrix, other = (t.detach().flatten(1).double() for t in (weight, tensor))
    along = ((u.T @ other) * (u.T @ matrix)).sum(1)
    return (along / sigma.clamp(min=torch.finfo(sigma.dtype).tiny)).masked_fill(sigma == 0, 0)[:, None]


def _num_kept(gone: Tensor) -> int:
    return gone.numel() - int(gone.count_nonzero())


def _matrix_shape(axes: Axes, name: str) -> tuple[int, int]:
    """(outputs, inputs × places)."""
    shape = axes.shape(name)
    return shape[0], math.prod(shape[1:])


def _two(axes: Axes, cost: Cost, rank: int) -> list[Cost]:
    """The costs of two layers in the place of one."""
    num_out, num_in = _matrix_shape(axes, str(cost.tensor))
    uses = math.prod(axes.graph.measure(axis, {}) for axis in cost.axes) // (num_out * num_in)
    return [replace(cost, axes=(Axis(uses), Axis(rank), Axis(size))) for size in (num_in, num_out)]


def _can_be_factored(axes: Axes, name: str) -> bool:
    """Whether a weight is that of a stock layer, which alone uses it, and a lower rank of it pays."""
    layer, _, leaf = name.rpartition(".")
    tied = axes.tensors[name].tied_to is not None or any(info.tied_to == name for info in axes.tensors.values())
    uses = [cost for cost in axes.costs if cost.tensor == name]
    return (
        bool(layer)
        and leaf == "weight"
        and not tied
        and axes.kinds[layer] in KINDS
        and axes.integers.get(f"{layer}.groups", 1) == 1
        and all(cost.modules and cost.modules[-1] == layer for cost in uses)
        and best_paying(*_matrix_shape(axes, name)) > 0
    )

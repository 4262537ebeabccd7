"""Gradients of single examples: rows of the Jacobian of a model's outputs, pulled back by chosen cotangents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only, tree_unflatten

from topiarist.errors import InputError
from topiarist.inputs import as_arguments, call
from topiarist.stats.statistic import Batch

_ELEMENTS = 1 << 26  # of gradients held at a time


def flat_outputs(outputs: Any, size: int) -> Tensor:
    """All floating-point outputs of a batch, one row an example: (size, outputs).

    Raises:
        InputError: an output does not have the examples first.

    Example:
        >>> flat_outputs((torch.zeros(3, 2, 2), torch.ones(3)), 3).shape
        torch.Size([3, 5])
    """
    found = [t for t in tree_flatten(outputs)[0] if isinstance(t, Tensor) and t.is_floating_point()]
    if not found or any(t.dim() == 0 or len(t) != size for t in found):
        shapes = [tuple(t.shape) for t in found]
        raise InputError(f"gradients of single examples need outputs of shape ({size} examples, …), got {shapes}")
    return torch.cat([t.reshape(size, -1) for t in found], dim=1)


def output_gradients(batch: Batch) -> Tensor:
    """∂ℓ_n / ∂ outputs of example n, where the loss is the mean of ℓ_n over the batch: (examples, 1, outputs)."""
    leaf, loss = _from_outputs(batch)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient[:, None] * batch.size


def output_roots(batch: Batch) -> Tensor:
    """Vectors s_nr with Σ_r s_nr s_nrᵀ the Hessian of ℓ_n by its outputs: (examples, rank, outputs).

    Exact where the loss is a mean of ℓ_n, each of the outputs of example n. Directions in which ℓ_n bends down are
    left out, as they are in no Gauss–Newton matrix.
    """
    leaf, loss = _from_outputs(batch)
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    hessian = leaf.new_zeros(*leaf.shape, leaf.shape[1]).double()
    for c in range(leaf.shape[1]) if gradient.requires_grad else ():
        (row,) = torch.autograd.grad(gradient[:, c].sum(), leaf, retain_graph=True)
        hessian[:, c] = row.double() * batch.size
    values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
    significant = values > values.abs().amax() * 1e-12
    rank = max(1, int(significant.sum(1).amax()))
    roots = (vectors * torch.where(significant, values, 0).clamp(min=0).sqrt()[:, None]).mT
    found: Tensor = roots[:, -rank:].to(leaf.dtype)
    return found


def _from_outputs(batch: Batch) -> tuple[Tensor, Tensor]:
    """The outputs as a leaf of shape (examples, outputs), and the loss as a function of it."""
    assert batch.loss_function is not None  # noqa: S101 it reads the loss
    leaf = flat_outputs(batch.outputs, batch.size).detach().requires_grad_(True)
    leaves, form = tree_flatten(batch.outputs)
    start, rebuilt = 0, []
    for tensor in leaves:
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            num = tensor[0].numel()
            rebuilt.append(leaf[:, start : start + num].reshape(tensor.shape))
            start += num
        else:
            rebuilt.append(tensor)
    return leaf, batch.loss_function(tree_unflatten(rebuilt, form), batch.targets)


def rows(batch: Batch, cotangents: Tensor, names: Sequence[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """J_nᵀ v_nr for the Jacobian J_n of example n and each of its cotangents: (examples, rank, *shape of parameter).

    Comes in chunks of examples that fit into memory. Models that `torch.func.vmap` cannot take run example by example.

    Args:
        cotangents: (examples, rank, outputs).
        names: of the parameters that are asked for; all of them where nothing is said.
    """
    held = batch.subject.parameters
    parameters = {name: held[name].detach() for name in (held if names is None else names)}
    per_example = cotangents.shape[1] * sum(p.numel() for p in parameters.values())
    step = max(1, _ELEMENTS // max(1, per_example))
    for first in range(0, batch.size, step):
        part = cotangents[first : first + step]
        try:
            yield _vmapped(batch, parameters, first, part)
        except (RuntimeError, ValueError):  # an operator without a batching rule, or control flow that looks at data
            yield _one_by_one(batch, {name: held[name] for name in parameters}, first, part)


def _some(inputs: Any, size: int, which: slice) -> Any:
    """Some examples of a batch of ``size``; tensors that do not have the examples first stay as they are."""
    return tree_map_only(Tensor, lambda t: t[which] if t.dim() and len(t) == size else t, inputs)


def _vmapped(batch: Batch, parameters: dict[str, Tensor], first: int, cotangents: Tensor) -> dict[str, Tensor]:
    model, size = batch.subject.model, batch.size
    inputs = _some(batch.inputs, size, slice(first, first + len(cotangents)))
    dims = tree_map(lambda t: 0 if isinstance(t, Tensor) and t.dim() and len(t) == size else None, batch.inputs)

    def example(x: Any, v: Tensor) -> dict[str, Tensor]:
        args, kwargs = as_arguments(tree_map(lambda t, d: t[None] if d == 0 else t, x, dims))

        def outputs(values: dict[str, Tensor]) -> Tensor:
            return flat_outputs(torch.func.functional_call(model, values, args, kwargs), 1)[0]

        pull: Any = torch.func.vjp(outputs, parameters)[1]
        found: dict[str, Tensor] = torch.func.vmap(lambda c: pull(c)[0])(v)
        return found

    rows_of_all: dict[str, Tensor] = torch.func.vmap(example, in_dims=(dims, 0))(inputs, cotangents)
    return rows_of_all


def _one_by_one(batch: Batch, leaves: dict[str, Tensor], first: int, cotangents: Tensor) -> dict[str, Tensor]:
    found = {name: p.new_zeros(*cotangents.shape[:2], *p.shape) for name, p in leaves.items()}
    for n in range(len(cotangents)):
        own = _some(batch.inputs, batch.size, slice(first + n, first + n + 1))
        outputs = flat_outputs(call(batch.subject.model, own), 1)[0]
        for r in range(cotangents.shape[1]):
            gradients = torch.autograd.grad(
                outputs, [*leaves.values()], cotangents[n, r], allow_unused=True, retain_graph=True
            )
            for name, gradient in zip(leaves, gradients, strict=True):
                if gradient is not None:
                    found[name][n, r] = gradient
    return found

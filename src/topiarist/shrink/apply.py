"""Physical pruning: a copy of the model whose tensors are smaller."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.asked import require, require_module
from topiarist.errors import InputError, ShrinkError
from topiarist.graph import attributes
from topiarist.graph.bypass import Bypass, replace_module
from topiarist.graph.copies import model_tensors, structural_copy
from topiarist.graph.factored import Factored
from topiarist.graph.heads import where_they_must
from topiarist.graph.shortened import shorten
from topiarist.graph.states import random_states_kept
from topiarist.held import held_tensors
from topiarist.inputs import call, fresh
from topiarist.outputs import tensors_in
from topiarist.plan import Plan, Scale, Slice
from topiarist.shrink.attributes import synchronise
from topiarist.strides import laid_out


def shrink(model: nn.Module, plan: Plan, example_inputs: Any = None) -> nn.Module:
    """A new module of the same class without what ``plan`` removes; ``model`` is untouched.

    Parameters, buffers and tensor attributes lose the positions of ``plan.slices``, integer attributes take the
    values of ``plan.attributes``, weights of ``plan.rescaled`` are multiplied, tied tensors stay tied. Where modules of
    ``plan.bypassed`` were, one hands its first input on (`topiarist.graph.bypass.Bypass`); where layers have a basis in
    ``plan.bases``, two stand for one (`topiarist.graph.factored.Factored`). The module lists of ``plan.shortened`` lose
    entries, and number the others
    anew. With ``example_inputs`` the result is run forward in
    evaluation mode, and forward and backward in training mode, before it is returned. Where heads leave a
    `torch.nn.MultiheadAttention`, `topiarist.graph.heads.FreeAttention` stands for it.

    Raises:
        InputError: the plan removes single weights, which leave shapes as they are, or does not fit the model.
        ShrinkError: the smaller model does not run.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> gone = torch.tensor([False, True, False])
        >>> plan = Plan("channel", {"0.weight:0": gone}, {
        ...     "0.weight": (Slice(0, gone),), "0.bias": (Slice(0, gone),), "2.weight": (Slice(1, gone),)})
        >>> shrink(net, plan, torch.zeros(1, 2))
        Sequential(
          (0): Linear(in_features=2, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=1, bias=True)
        )
    """
    require_module(model)
    require(plan, Plan, "a plan is a Plan", "what topiarist.plan returns: shrink(model, plan, example_inputs)")
    if plan.structure == "weight" or plan.zeroed:
        what = "single weights" if plan.structure == "weight" else f"units of {plan.structure!r}"
        raise InputError(f"{what} leave shapes as they are: use topiarist.mask, or a structure such as 'channel'")
    small = structural_copy(model, _tensors(model, plan))
    for name, form in plan.bypassed.items():
        replace_module(small, name, partial(Bypass.of, form=form))
    for name, basis in plan.bases.items():
        replace_module(small, _layer_of(small, name), partial(Factored.of, basis=basis))
    attributes.update(small, plan.attributes)
    for name, gone in sorted(plan.shortened.items(), key=lambda item: -len(item[0])):  # inner lists first
        shorten(small, name, (~gone).nonzero().flatten().tolist())
    synchronise(small)
    small = where_they_must(small)
    if example_inputs is not None:
        check_runs(small, example_inputs, model)
    return small


def _layer_of(model: nn.Module, name: str) -> str:
    """The module that holds the weight ``name``."""
    _held(model, name)
    return name.rpartition(".")[0]


def _tensors(model: nn.Module, plan: Plan) -> dict[int, Any]:
    """The tensors of the smaller model by the ids of those of ``model``: what is cut is never copied whole."""
    made: dict[int, Any] = {}
    kept: dict[tuple[int, torch.device], Tensor] = {}
    held = {name: tensor for name, tensor, _ in model_tensors(model)}
    for name in (*plan.slices, *plan.rescaled):
        tensor = held[name] if name in held else _held(model, name)
        if id(tensor) not in made:  # tied tensors are one object, and stay it
            scales, slices = plan.rescaled.get(name, ()), plan.slices.get(name, ())
            made[id(tensor)] = _like(tensor, _cut(name, rescaled(name, tensor.data, scales), slices, kept))
    for tensor in held.values():
        if id(tensor) not in made:
            if type(tensor) is nn.Parameter:
                made[id(tensor)] = _like(tensor, tensor.data.clone())
            else:  # buffers may share memory
                copy.deepcopy(tensor, made)
    return made


def _held(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(path)
        held = held_tensors(module)
        places: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, held, module.__dict__)
        tensor = next(place for place in places if leaf in place)[leaf]
    except (AttributeError, StopIteration):
        raise InputError(f"the plan cuts {name!r}, which {type(model).__name__} does not have") from None
    if not isinstance(tensor, Tensor):
        raise InputError(f"the plan cuts {name!r}, which is no tensor of this model but {type(tensor).__name__}")
    return tensor


def _like(tensor: Tensor, data: Tensor) -> Tensor:
    """A copy of ``tensor`` with other data."""
    if type(tensor) is nn.Parameter:
        return nn.Parameter(data, requires_grad=tensor.requires_grad)
    if type(tensor) is Tensor and not tensor.requires_grad and not tensor.__dict__:
        return data
    copied = copy.deepcopy(tensor)
    copied.data = data
    return copied


def rescaled(name: str, tensor: Tensor, scales: tuple[Scale, ...]) -> Tensor:
    """A copy of ``tensor`` with some entries multiplied; itself where none are.

    Raises:
        InputError: the plan was made for a tensor of another shape.
    """
    for scale in scales:
        shape = tuple(tensor.shape)
        factor = torch.full((), scale.factor, dtype=tensor.dtype, device=tensor.device)
        chosen = torch.ones((1,) * len(shape), dtype=torch.bool, device=tensor.device)
        for dim, own in scale.within:
            if dim >= len(shape) or shape[dim] != own.numel():
                raise InputError(
                    f"{name} has shape {shape}, the plan was made for size {own.numel()} in dimension {dim}"
                )
            chosen = chosen & own.to(tensor.device).view([-1 if d == dim else 1 for d in range(len(shape))])
        tensor = torch.where(chosen, tensor * factor, tensor)
    return tensor


def _cut(name: str, tensor: Tensor, slices: tuple[Slice, ...], known: dict[tuple[int, torch.device], Tensor]) -> Tensor:
    """``tensor`` without what the slices remove; ``known`` are the indices that stay, of slices met before."""
    small = tensor
    for piece in slices:
        if piece.dim >= small.dim() or small.shape[piece.dim] != piece.removed.numel():
            raise InputError(
                f"{name} has shape {tuple(tensor.shape)}, the plan was made for size {piece.removed.numel()} "
                f"in dimension {piece.dim}"
            )
        key = (id(piece.removed), small.device)
        if key not in known:
            known[key] = (~piece.removed).nonzero().flatten().to(small.device)
        small = small.index_select(piece.dim, known[key])
    return laid_out(small, tensor)


def check_runs(model: nn.Module, example_inputs: Any, original: nn.Module) -> None:
    """Run forward in evaluation mode, forward and backward in training mode, on a copy.

    Raises:
        ShrinkError: one of them fails, and not for ``original`` as well.
    """
    for training in (False, True):
        error = _failure(model, example_inputs, training)
        if error is not None and _failure(original, example_inputs, training) is None:
            mode = "training" if training else "evaluation"
            raise ShrinkError(
                f"the smaller {type(model).__name__} does not run in {mode} mode ({type(error).__name__}: {error}); "
                f"the model is untouched. Its code fixes a size that should follow: see "
                f"topiarist.trace(...).summary(), and keep=[...] keeps layers whole"
            ) from error


def _failure(model: nn.Module, example_inputs: Any, training: bool) -> Exception | None:
    trial = copy.deepcopy(model).train(training)
    try:
        with random_states_kept(trial), torch.set_grad_enabled(training):
            differentiable = [t for t in tensors_in(call(trial, fresh(example_inputs))) if t.requires_grad]
            if training and differentiable:
                torch.autograd.backward([t.abs().sum() for t in differentiable])
    except Exception as error:  # whatever a model may raise
        return error
    return None

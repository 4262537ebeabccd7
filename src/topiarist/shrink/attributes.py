"""The sizes that torch's own layers keep for show: made to agree with their tensors after a cut."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from topiarist.graph.copies import named_modules

_SIZED = (nn.Linear, _ConvNd, nn.GroupNorm, nn.Embedding, nn.PReLU)


def synchronise(model: nn.Module) -> None:
    """Set ``in_features``, ``out_channels``, ``num_features`` and their like from the shapes of the tensors."""
    for _, module in named_modules(model):
        if isinstance(module, _SIZED) and (weight := _weight(module)) is not None:
            _synchronise(module, weight)
        if isinstance(module, _NormBase):
            sized = [t for t in (module.weight, module.running_mean) if isinstance(t, Tensor)]
            module.num_features = sized[0].shape[0] if sized else module.num_features


def _weight(module: nn.Module) -> Tensor | None:
    """The weight of a module, if it has one; where it is computed, in evaluation mode, which changes nothing."""
    if not parametrize.is_parametrized(module, "weight"):
        weight = getattr(module, "weight", None)
        return weight if isinstance(weight, Tensor) else None
    training = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad():
            computed: Tensor = module.eval().weight  # type: ignore[assignment]
        return computed
    finally:
        for part, mode in training.items():
            part.training = mode


def _synchronise(module: nn.Module, weight: Tensor) -> None:
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, _ConvTransposeNd):
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, _ConvNd):
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]

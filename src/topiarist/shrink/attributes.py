"""The sizes that torch's own layers keep for show: made to agree with their tensors after a cut."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def synchronise(model: nn.Module) -> None:
    """Set ``in_features``, ``out_channels``, ``num_features`` and their like from the shapes of the tensors."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            _synchronise(module, weight)
        if isinstance(module, _NormBase):
            sized = [t for t in (module.weight, module.running_mean) if isinstance(t, Tensor)]
            module.num_features = sized[0].shape[0] if sized else module.num_features


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

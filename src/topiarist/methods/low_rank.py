"""Low rank: layers become two thin ones, by the singular value decomposition (Denton et al. 2014)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from topiarist.errors import InputError
from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune
from topiarist.structure import Rank


@method(
    paper="Denton, Zaremba, Bruna, LeCun, Fergus 2014, Exploiting linear structure within convolutional networks; "
    "Zhang, Zou, He, Sun 2015, Accelerating very deep convolutional networks (weighted)",
    structure="rank",
    headline="convolutions of a CIFAR/ImageNet network twice as fast, accuracy within one percentage point (abstract)",
)
def low_rank(
    model: nn.Module,
    example_inputs: Any,
    *,
    weighted: bool = False,
    data: Iterable[Any] | None = None,
    recover: Any = "none",
    **options: Any,
) -> PruneResult:
    """Keep the largest singular values of each weight, and put two thin layers in its place where that pays.

    ``weighted=True`` weighs errors by what the layers are multiplied by on ``data``: the error of their outputs is
    least, instead of that of the weights. Other options are those of `topiarist.prune`.

    Raises:
        InputError: it is weighted, and there is no data.

    Example:
        >>> import torch, topiarist
        >>> net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        >>> result = low_rank(net, torch.zeros(1, 16), budget=topiarist.Budget(params=0.6))
        >>> type(result.model[0]).__name__, result.verification.passed
        ('Factored', True)
    """
    if weighted and data is None:
        raise InputError("errors are weighted by what layers are multiplied by: pass data=batches of inputs")
    structure = Rank.weighted(model, data) if weighted and data is not None else Rank()
    told = {"saliency": "l2", "allocation": "global", **options}
    return prune(model, example_inputs, structure=structure, data=data, recover=recover, **told)

"""Intra-kernel pruning: regular patterns inside the kernels of convolutions (Anwar et al. 2015, Yang et al. 2018)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist import structure as structures
from topiarist.errors import InputError
from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune

ENDS = ("intra-kernel", "strided", "pattern")


@method(
    paper="Anwar, Hwang, Sung 2015, Structured pruning of deep convolutional neural networks, arXiv:1512.08571; Yang "
    "and others 2018, Structured pruning of convolutional neural networks via intra-kernel regularity (IKR)",
    structure="intra-kernel",
    needs=("data", "training"),
    headline="IKR: 10× fewer parameters and 7× fewer MACs at under 1 % loss; strided: over 70 % inside kernels",
)
def intra_kernel(
    model: nn.Module,
    example_inputs: Any,
    *,
    structure: Any = "intra-kernel",
    saliency: Any = "l2",
    recover: Any = "fine-tune",
    **options: Any,
) -> PruneResult:
    """Keep inside the kernels the places of a few shared patterns, those that keep the most saliency, and train on.

    ``structure`` says who shares: ``"intra-kernel:4x8"``, kernels that are alike (IKR: 4 places, 8 sets a layer),
    ``"strided:2"``, all kernels that leave one map, ``"pattern"``, all kernels of the network. Without a budget
    everything outside the patterns goes; with one in ``sparsity``, ``schedule`` and ``steps`` go there by and by. Other
    options are those of `topiarist.prune`.

    Raises:
        InputError: the structure is not one inside kernels.
    """
    form = structures.resolve(structure)
    word = str(getattr(form, "word", type(form).__name__.lower()))
    if word.partition(":")[0] not in ENDS:
        raise InputError(f"{structure!r} is no structure inside kernels; try {', '.join(ENDS)}")
    amounts: dict[str, Any] = {"allocation": "uniform", "budget": None}
    return prune(model, example_inputs, structure=form, saliency=saliency, recover=recover, **{**amounts, **options})

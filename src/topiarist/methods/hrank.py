"""HRank: channels whose feature maps have low rank go (Lin et al. 2020)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune
from topiarist.saliency import HRank


@method(
    paper="Lin, Ji, Wang, Zhang, Zhang, Tian, Shao 2020, HRank: filter pruning using high-rank feature map, "
    "arXiv:2002.10179",
    structure="channel",
    needs=("data", "training"),
    headline="ResNet-56 on CIFAR-10 without 50 % of the FLOPs: 93.17, dense 93.26 (from memory)",
)
def hrank(model: nn.Module, example_inputs: Any, *, recover: Any = "fine-tune", **options: Any) -> PruneResult:
    """Remove the channels of each layer whose feature maps have the lowest mean rank over ``data``, and train on.

    Every layer loses the fraction that meets ``budget``, unless ``allocation`` says otherwise (the paper names ratios
    by hand: a dict). Other options are those of `topiarist.prune`.
    """
    return prune(
        model,
        example_inputs,
        structure="channel",
        saliency=HRank(),
        recover=recover,
        **{"allocation": "uniform", **options},
    )

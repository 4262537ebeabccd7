"""HRank: channels go whose feature maps have the lowest rank, whatever the image (Lin et al. 2020)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune


@method(
    paper="Lin, Ji, Wang, Zhang, Zhang, Tian, Shao 2020, HRank: filter pruning using high-rank feature map",
    structure="channel",
    needs=("data", "training"),
    headline="ResNet-110 on CIFAR-10 without 58.2 % of its FLOPs: 0.14 percentage points lost (abstract, as quoted)",
)
def hrank(model: nn.Module, example_inputs: Any, *, recover: Any = "fine-tune", **options: Any) -> PruneResult:
    """Remove the channels of lowest average rank of their feature maps, of each layer its share; then train on.

    A few batches of ``data`` are enough for the ranks. ``allocation`` is ``"uniform"`` unless given; the paper sets the
    share of each layer by hand (a dict of ratios does). Other options are those of `topiarist.prune`.
    """
    told = {"structure": "channel", "allocation": "uniform", **options}
    return prune(model, example_inputs, saliency="hrank", recover=recover, **told)

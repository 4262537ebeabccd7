"""ThiNet: layer by layer, the channels that the next layer misses least go, and the others are scaled."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist import recover as recoveries
from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune
from topiarist.recover import InTurn
from topiarist.saliency import ThiNet


@method(
    paper="Luo, Wu, Lin 2017, ThiNet: a filter level pruning method for deep neural network compression, "
    "arXiv:1707.06342",
    structure="channel",
    needs=("data", "training"),
    headline="VGG-16 on ImageNet, 30.94 → 9.58 billion FLOPs: 69.80 top-1, dense 68.34",
)
def thinet(
    model: nn.Module, example_inputs: Any, *, each: Any = "none", recover: Any = "fine-tune", **options: Any
) -> PruneResult:
    """Remove of one layer after the other, from the input on, the channels that the next one's outputs miss least.

    Each layer is chosen greedily on what the layers before it have left, and the next one's weights are scaled by least
    squares; ``each`` follows every layer (``"fine-tune"``: the paper's one or two epochs), ``recover`` the last one.
    Every layer loses the fraction that meets ``budget``, unless ``allocation`` says otherwise. Other options are those
    of `topiarist.prune`.
    """
    follows = InTurn(recoveries.resolve(each), recoveries.resolve(recover))
    return prune(
        model,
        example_inputs,
        structure="channel",
        saliency=ThiNet(),
        recover=follows,
        sequential=True,
        **{"allocation": "uniform", **options},
    )

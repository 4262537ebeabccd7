"""FPGM: filters near the geometric median of their layer are zeroed after every epoch and learn on (He et al. 2019)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.methods.during import while_training
from topiarist.pruning import PruneResult
from topiarist.saliency import GeometricMedian


@method(
    paper="He, Liu, Wang, Hu, Yang 2019, Filter pruning via geometric median for deep convolutional neural networks "
    "acceleration, arXiv:1811.00250",
    structure="channel",
    needs=("data", "training"),
    when="during",
    headline="ResNet-56 on CIFAR-10, 52.6 % fewer FLOPs: 93.49, dense 93.59",
)
def fpgm(
    model: nn.Module,
    example_inputs: Any,
    *,
    smallest: float = 0.0,
    distance: str = "l2",
    every: float = 1.0,
    recover: Any = "none",
    **options: Any,
) -> PruneResult:
    """Zero the filters nearest to all others after every epoch of a training, let them learn on, remove the last ones.

    The training is that of ``recipe``, from ``model`` as it is, fresh or trained; ``every`` counts epochs. ``smallest``
    is the share that goes by norm first (the paper's mix: 0.1 of the filters), ``distance`` ``"l2"`` or ``"cosine"``,
    ``recover`` what follows the training.
    Every layer loses the fraction that meets ``budget``. Other options are those of `topiarist.Pruner`.

    Raises:
        InputError: there is no data, loss or recipe.
    """
    return while_training(
        "fpgm",
        model,
        example_inputs,
        structure="channel",
        saliency=GeometricMedian(distance, smallest),
        every=every,
        allow_regrow=True,
        recover=recover,
        **{"allocation": "uniform", "schedule": "one-shot", **options},
    )

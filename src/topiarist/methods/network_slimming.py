"""Network Slimming: L1 on the scales of norms in training, one threshold for all channels (Liu et al. 2017)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from topiarist.allocation import Global
from topiarist.asked import patterns
from topiarist.mask import ScaleL1, units_in
from topiarist.methods.base import method
from topiarist.methods.stages import as_first_step, kept, training
from topiarist.plan import Units
from topiarist.pruning import PruneResult, prune
from topiarist.recover import TrainingRecipe, train
from topiarist.recover.train import Loss


@method(
    paper="Liu, Li, Shen, Huang, Yan, Zhang 2017, Learning efficient convolutional networks through network slimming, "
    "arXiv:1708.06519",
    structure="channel",
    needs=("data", "gradients", "training"),
    when="during",
    headline="VGG-19 on CIFAR-10 without 70 % of the channels, 20.04 → 2.25 million parameters: 93.78, dense 93.77",
)
def network_slimming(
    model: nn.Module,
    example_inputs: Any,
    *,
    strength: float = 1e-4,
    sparse: TrainingRecipe | None = None,
    keep: Sequence[str] = (),
    recover: Any = "fine-tune",
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    recipe: TrainingRecipe | None = None,
    folder: str | Path | None = None,
    on_step: Callable[[Mapping[str, float]], None] | None = None,
    **options: Any,
) -> PruneResult:
    """Train with λ Σ|γ_j| on the scales of norms, remove the channels of smallest |γ_j| over all layers, and train on.

    ``strength`` is λ (the paper's 1e-4 for VGG, 1e-5 for ResNet and DenseNet); ``sparse`` is how the model trains with
    it, ``recipe`` where not given. Channels that no norm scales stay. Other options are those of `topiarist.prune`.

    Raises:
        InputError: there is no data, loss or recipe, or no norm in the model scales channels that may go.
    """
    data, loss, told = training("network-slimming", data, loss, sparse or recipe)
    _, units = units_in(model, example_inputs, keep=keep)
    penalty = ScaleL1(model, units, strength)

    def pressed() -> nn.Module:
        work = copy.deepcopy(model)
        train(work, data, loss, told, before_step=penalty, on_step=as_first_step(on_step))
        return work

    return prune(
        kept(folder, "sparse", lambda: copy.deepcopy(model), pressed),
        example_inputs,
        structure="channel",
        saliency="bn-scale",
        keep=[*patterns(keep), *(u.layer for u in units if not _scaled(u, penalty))],
        recover=recover,
        data=data,
        loss=loss,
        recipe=recipe,
        folder=folder,
        on_step=on_step,
        **{"allocation": Global("none"), **options},
    )


def _scaled(units: Units, penalty: ScaleL1) -> bool:
    return any(member.tensor in penalty.names for member in units.members)

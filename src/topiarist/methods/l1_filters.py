"""L1-norm filter pruning: filters of small Σ|F_j| go, as much of each layer as is said (Li et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from topiarist.errors import InputError, nearest
from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune
from topiarist.saliency import FilterNorm


def _removed(channels: int, rate: float) -> float:
    """The fraction that goes of so many channels where int(channels · (1 − rate)) stay."""
    return (channels - int(channels * (1 - rate))) / channels


def _stages(
    blocks: Sequence[int], widths: Sequence[int], rates: Sequence[float], skipped: Sequence[int]
) -> dict[str, float]:
    """The first convolution of every basic block, at the rate of its stage; layers are numbered by twos from 2."""
    firsts: Iterator[tuple[str, int, float]] = (
        (f"layer{stage}.{block}.conv1", widths[stage - 1], rates[stage - 1])
        for stage, num in enumerate(blocks, 1)
        for block in range(num)
    )
    numbered = {2 + 2 * place: each for place, each in enumerate(firsts)}
    return {name: _removed(width, rate) for n, (name, width, rate) in numbered.items() if rate and n not in skipped}


_CIFAR, _WIDE = (16, 32, 64), (64, 128, 256, 512)
_SKIPPED_34 = (2, 8, 14, 16, 26, 28, 30, 32)

CONFIGS: Mapping[str, Mapping[str, float]] = {
    "vgg16-a": dict.fromkeys((f"features.{n}" for n in (0, 24, 27, 30, 34, 37, 40)), 0.5),
    "resnet56-a": _stages((9,) * 3, _CIFAR, (0.1,) * 3, (16, 20, 38, 54)),
    "resnet56-b": _stages((9,) * 3, _CIFAR, (0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54)),
    "resnet110-a": _stages((18,) * 3, _CIFAR, (0.5, 0, 0), (36,)),
    "resnet110-b": _stages((18,) * 3, _CIFAR, (0.5, 0.4, 0.3), (36, 38, 74)),
    "resnet34-a": _stages((3, 4, 6, 3), _WIDE, (0.3, 0.3, 0.3, 0), _SKIPPED_34),
    "resnet34-b": _stages((3, 4, 6, 3), _WIDE, (0.5, 0.6, 0.4, 0), _SKIPPED_34),
}


@method(
    paper="Li, Kadav, Durdanovic, Samet, Graf 2017, Pruning filters for efficient ConvNets, arXiv:1608.08710",
    structure="channel",
    needs=("data", "training"),
    headline="ResNet-56-B on CIFAR-10, 27.6 % fewer MACs: 93.06, dense 93.04",
)
def l1_filters(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratios: str | Mapping[str, float] | None = None,
    greedy: bool = False,
    recover: Any = "fine-tune",
    **options: Any,
) -> PruneResult:
    """Remove the filters of smallest Σ|F_j| of each layer, in one shot, and train on.

    ``ratios`` says what goes of each layer: a dict by layer name pattern, or one of the paper's predefined
    configurations (`CONFIGS`: ``"vgg16-a"``, ``"resnet56-a"``, …); without it every layer loses the fraction that
    meets ``budget``, with it a budget is not looked at. ``greedy`` leaves out of the sums what earlier layers
    have lost; else they count all input channels. Other options are those of `topiarist.prune`.

    Raises:
        InputError: no configuration is called so, or it is not one of this model.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
        >>> result = l1_filters(net, torch.zeros(1, 1, 8, 8), ratios={"0": 0.5}, recover="none")
        >>> result.model[0].out_channels
        2
    """
    if isinstance(ratios, str):
        if ratios not in CONFIGS:
            raise InputError(f"no configuration is called {ratios!r} ({nearest(ratios, CONFIGS)})")
        ratios = CONFIGS[ratios]
    chosen = {**options, "allocation": ratios, "budget": None} if ratios else {"allocation": "uniform", **options}
    return prune(
        model,
        example_inputs,
        structure="channel",
        saliency=FilterNorm(p=1),
        recover=recover,
        sequential=greedy,
        **chosen,
    )

"""Wanda: single weights in one shot by |w| ‖x‖, each among those of its output (Sun et al. 2023)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune
from topiarist.saliency import Wanda


@method(
    paper="Sun, Liu, Bair, Kolter 2023, A simple and effective pruning approach for large language models",
    structure="weight",
    needs=("data",),
    headline="LLaMA-7B at sparsity 0.5: perplexity 5.68 → 7.26 on WikiText; at 2:4 11.53 (authors' table)",
)
def wanda(
    model: nn.Module,
    example_inputs: Any,
    *,
    structure: Any = "weight",
    among: str = "output",
    sequential: bool = True,
    **options: Any,
) -> PruneResult:
    """Remove the weights of smallest |w_ij| · ‖x_j‖₂ of each output; nothing else changes.

    Layers go one after the other, each seeing what those before it leave (``sequential``). ``structure="2:4"`` needs no
    budget; ``among="layer"`` lets all weights of a layer compete. Other options are those of `topiarist.prune`.
    """
    told = {"allocation": "uniform", "recover": "none", **options}
    return prune(model, example_inputs, structure=structure, saliency=Wanda(among), sequential=sequential, **told)

"""Block drop (ShortGPT): whole blocks that hardly turn the residual stream go, at once (Men et al. 2024)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune


@method(
    paper="Men, Xu, Zhang, Wang, Lin, Lu, Han, Chen 2024, ShortGPT: layers in large language models are more redundant "
    "than you expect",
    structure="layer",
    needs=("data",),
    headline="Llama-2-7B loses nine of 32 blocks, 27, 26, 25, 28, 24, 29, 23, 21, 22: MMLU 45.39 → 43.96 (as quoted)",
)
def block_drop(model: nn.Module, example_inputs: Any, *, recover: Any = "none", **options: Any) -> PruneResult:
    """Remove the blocks of lowest influence 1 − E cos(x_in, x_out), scored on the whole model, all at once.

    What a block is, is seen: the outermost modules of one class that return the shape of their first input. No labels,
    no gradients, no training unless ``recover`` says so. Other options are those of `topiarist.prune`.
    """
    told = {"structure": "layer", "saliency": "block-influence", "allocation": "global", **options}
    return prune(model, example_inputs, recover=recover, **told)

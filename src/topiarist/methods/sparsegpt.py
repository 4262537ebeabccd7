"""SparseGPT: single weights in one shot, and those that stay make up for them (Frantar, Alistarh 2023)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.plan import Budget
from topiarist.pruning import PruneResult, prune
from topiarist.saliency import OBC, Saliency, SparseGPT


@method(
    paper="Frantar, Alistarh 2023, SparseGPT: massive language models can be accurately pruned in one-shot; Frantar, "
    "Singh, Alistarh 2022, Optimal Brain Compression (exact=True)",
    structure="weight",
    needs=("data",),
    headline="OPT-175B at sparsity 0.5: perplexity 8.35 → 8.21 on WikiText2; OPT-2.7B 12.47 → 13.48",
)
def sparsegpt(
    model: nn.Module,
    example_inputs: Any,
    *,
    structure: Any = "weight",
    exact: bool = False,
    damping: float = 0.01,
    sequential: bool = True,
    budget: Budget | None = None,
    **options: Any,
) -> PruneResult:
    """Remove the weights that those to their right can make up for best, by the Hessian E x xᵀ of each layer's inputs.

    Layers go one after the other, each seeing what those before it leave (``sequential``). ``structure="2:4"`` needs no
    budget. ``exact=True`` is Optimal Brain Compression, exact and greedy, for layers of a few hundred inputs. No labels
    and no training. Other options are those of `topiarist.prune`; ``keep`` what the paper leaves whole, the embeddings
    and the head of a language model.
    """
    share = 0.5 if budget is None else budget.removed
    criterion: Saliency = OBC(damping) if exact else SparseGPT(share, damping=damping)
    told = {"allocation": "uniform", "recover": "none", **options}
    return prune(
        model, example_inputs, structure=structure, saliency=criterion, sequential=sequential, budget=budget, **told
    )

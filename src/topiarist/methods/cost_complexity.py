"""Cost-complexity pruning of decision trees (Breiman, Friedman, Olshen, Stone 1984, chapter 3), by scikit-learn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from topiarist.errors import BudgetError
from topiarist.methods.base import method
from topiarist.methods.trees import Row, accuracy, examples, require_tree, result, row
from topiarist.models.tree import LEAF, DecisionTree
from topiarist.plan import Budget
from topiarist.pruning import PruneResult

_CLOSE = 1e-12


@method(
    paper="Breiman, Friedman, Olshen, Stone 1984, Classification and regression trees",
    structure="tree",
    needs=("data",),
    headline="none; the sequence of best trees of every size is the theorem",
)
def cost_complexity(
    model: DecisionTree,
    example_inputs: Any = None,
    *,
    data: Iterable[Any],
    budget: Budget | None = None,
    validation: Iterable[Any] | None = None,
    **_: Any,
) -> PruneResult:
    """Remove the subtrees whose loss of impurity per leaf, α = (R(t) − R(T_t)) / (|T_t| − 1), is least.

    The sequence of α and its trees are scikit-learn's (``cost_complexity_pruning_path``), grown on the training
    examples ``data``. With a budget in ``sparsity`` (the fraction of nodes removed) the first tree of the sequence that
    is small enough is taken; else the one that hits most of ``validation``, of equals the smallest. ``curve`` has a row
    per tree of the sequence, with ``alpha``, ``num_leaves`` and ``accuracy`` (on validation, or the data).

    Raises:
        BudgetError: no tree of the sequence is small enough.
        InputError: no data, or no tree.
    """
    from sklearn.tree import DecisionTreeClassifier

    require_tree(model)
    inputs, targets = examples(data)
    held = examples(validation) if validation is not None else (inputs, targets)
    path = DecisionTreeClassifier(**model.settings).cost_complexity_pruning_path(inputs.numpy(), targets.numpy())
    curve: list[Row] = []
    cuts: list[Tensor] = []
    for alpha in sorted({max(0.0, float(a)) for a in path.ccp_alphas}):
        smaller = DecisionTree.fit(inputs, targets, **{**model.settings, "ccp_alpha": alpha + _CLOSE})
        cuts.append(gone(model, smaller))
        curve.append(row(model, cuts[-1], len(curve) + 1, alpha=alpha, accuracy=accuracy(smaller, *held)))
    chosen = _chosen(curve, budget)
    return result(model, cuts[chosen], curve[chosen], curve)


def _chosen(curve: list[Row], budget: Budget | None) -> int:
    if budget is None:
        return max(range(len(curve)), key=lambda i: (curve[i]["accuracy"], curve[i]["sparsity"]))
    small = [i for i, row in enumerate(curve) if row["sparsity"] >= budget.removed - _CLOSE]
    if not small:
        raise BudgetError(
            f"asked for a sparsity of {budget.removed:g} of the nodes, the root alone is {curve[-1]['sparsity']:g}"
        )
    return small[0]


def gone(tree: DecisionTree, smaller: DecisionTree) -> Tensor:
    """The nodes of ``tree`` that ``smaller``, the same tree with subtrees cut off, does not have: bool (num_nodes,)."""
    removed = torch.ones(tree.num_nodes, dtype=torch.bool)
    pairs = [(0, 0)]
    while pairs:
        here, there = pairs.pop()
        removed[here] = False
        if int(smaller.left[there]) != LEAF:
            pairs += [
                (int(tree.left[here]), int(smaller.left[there])),
                (int(tree.right[here]), int(smaller.right[there])),
            ]
    return removed

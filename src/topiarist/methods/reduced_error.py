"""Reduced-error pruning of decision trees (Quinlan 1987)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from topiarist.methods.base import method
from topiarist.methods.trees import accuracy, examples, require_tree, result, row
from topiarist.models.tree import LEAF, DecisionTree
from topiarist.pruning import PruneResult


@method(
    paper="Quinlan 1987, Simplifying decision trees",
    structure="tree",
    needs=("data",),
    headline="none; the smallest of the trees that err least on the examples is the theorem",
)
def reduced_error(model: DecisionTree, example_inputs: Any = None, *, data: Iterable[Any], **_: Any) -> PruneResult:
    """Make a node a leaf wherever that errs no more on ``data``, from the bottom up; it predicts its majority.

    ``data`` are examples that the tree was not grown on. Of all prunings of the tree the result is the smallest of
    those with the fewest errors on them. ``curve`` has one row, with ``num_leaves`` and ``accuracy``.

    Raises:
        InputError: no data, or no tree.
    """
    require_tree(model)
    inputs, targets = examples(data)
    removed = _removed(model, _errors(model, inputs, targets))
    found = row(model, removed, 1, accuracy=accuracy(model.without(removed), inputs, targets))
    return result(model, removed, found, [found])


def _errors(tree: DecisionTree, inputs: Tensor, targets: Tensor) -> Tensor:
    """How many examples each node would miss as a leaf: int64 (num_nodes,)."""
    num_classes = tree.counts.shape[1]
    seen = torch.zeros(tree.num_nodes, num_classes, dtype=torch.long)
    seen.index_put_((tree.leaves(inputs), targets), torch.ones(len(targets), dtype=torch.long), accumulate=True)
    for node in range(tree.num_nodes - 1, -1, -1):
        if int(tree.left[node]) != LEAF:
            seen[node] = seen[tree.left[node]] + seen[tree.right[node]]
    majority = tree.counts.argmax(1)
    return seen.sum(1) - seen.gather(1, majority[:, None])[:, 0]


def _removed(tree: DecisionTree, errors: Tensor) -> Tensor:
    removed, best, below = torch.zeros(tree.num_nodes, dtype=torch.bool), errors.clone(), tree.below()
    for node in range(tree.num_nodes - 1, -1, -1):
        if int(tree.left[node]) == LEAF:
            continue
        kept = int(best[tree.left[node]] + best[tree.right[node]])
        if int(errors[node]) <= kept:
            removed[below[node]] = True
        else:
            best[node] = kept
    return removed

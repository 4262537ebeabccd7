"""What both ways of pruning a decision tree share: examples as arrays, and the result in the words of `prune`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from topiarist.asked import require
from topiarist.errors import InputError
from topiarist.inputs import as_batch
from topiarist.models.tree import DecisionTree
from topiarist.plan import Plan
from topiarist.pruning import PruneResult

Row = dict[str, float]


def examples(data: Iterable[Any] | None) -> tuple[Tensor, Tensor]:
    """All inputs and targets of ``data``.

    Raises:
        InputError: there is no data.
    """
    batches = [as_batch(batch) for batch in data or ()]
    if not batches:
        raise InputError("pruning a tree looks at examples: pass data=batches of (inputs, targets)")
    return torch.cat([inputs for inputs, _ in batches]), torch.cat([targets for _, targets in batches])


def require_tree(model: object) -> None:
    """Refuse what is no decision tree.

    Raises:
        InputError: it is a network, say.
    """
    require(model, DecisionTree, "this method prunes a topiarist.models.DecisionTree", "a method for networks")


def accuracy(tree: DecisionTree, inputs: Tensor, targets: Tensor) -> float:
    """The fraction of targets that the tree hits."""
    return float((tree(inputs).argmax(1) == targets).double().mean())


def row(tree: DecisionTree, removed: Tensor, step: int, **more: float) -> Row:
    """What a cut leaves, in the words of `topiarist.PruneResult.curve`; a tree multiplies nothing."""
    left = 1 - float(removed.double().mean())
    leaves = tree.without(removed).num_leaves
    share = {"sparsity": 1 - left, "params": left, "compression": 1 / left, "macs": 1.0}
    return {"step": step, **share, "num_leaves": leaves, **more}


def result(tree: DecisionTree, removed: Tensor, found: Row, curve: Sequence[Row]) -> PruneResult:
    """The tree without the marked nodes, whose row is ``found``, as `topiarist.prune` returns networks."""
    achieved = {key: found[key] for key in ("sparsity", "params", "compression", "macs")}
    why = "the nodes that stay are fewer than those that its class grows"
    plan = Plan("tree", {"nodes": removed}, achieved=achieved)
    return PruneResult(tree.without(removed), plan, tuple(curve), (), None, {}, "topiarist.load", why)

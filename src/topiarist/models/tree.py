"""Decision trees of scikit-learn (Breiman et al. 1984) as modules, so that what is said of networks holds for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topiarist.errors import InputError

LEAF = -1


class DecisionTree(nn.Module):
    """A classification tree: node i sends x to ``left[i]`` where x[``feature[i]``] ≤ ``threshold[i]``, else to
    ``right[i]``; where both are −1 it is a leaf.

    ``counts`` is (num_nodes, num_classes): how many training examples of each class came to a node, by weight. The
    output is the log of the classes' shares in the leaf, with half an example added to each class (Krichevsky and
    Trofimov 1981), so that losses stay finite. ``settings`` are scikit-learn's own, with which the tree was grown.

    Example:
        >>> tree = DecisionTree.fit(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 0, 1]))
        >>> tree.num_nodes, tree(torch.tensor([[0.4], [9.0]])).argmax(1)
        (3, tensor([0, 1]))
    """

    feature: Tensor
    left: Tensor
    right: Tensor

    def __init__(
        self, feature: Tensor, threshold: Tensor, left: Tensor, right: Tensor, counts: Tensor, settings: dict[str, Any]
    ) -> None:
        super().__init__()
        for name, values in {"feature": feature, "left": left, "right": right}.items():
            self.register_buffer(name, values.long())
        self.threshold = nn.Parameter(threshold.double(), requires_grad=False)
        self.counts = nn.Parameter(counts.double(), requires_grad=False)
        self.settings = settings

    @classmethod
    def fit(cls, inputs: Tensor, targets: Tensor, **settings: Any) -> DecisionTree:
        """Grow a tree with scikit-learn's ``DecisionTreeClassifier(**settings)``, ``random_state`` 0 unless given.

        Raises:
            InputError: inputs are not of shape (num_examples, num_features).
        """
        from sklearn.tree import DecisionTreeClassifier

        if inputs.ndim != 2:
            raise InputError(f"a tree takes inputs (num_examples, num_features), got {tuple(inputs.shape)}")
        settings = {"random_state": 0, **settings}
        return cls.of(DecisionTreeClassifier(**settings).fit(inputs.numpy(), targets.numpy()))

    @classmethod
    def of(cls, estimator: Any) -> DecisionTree:
        """The tree that a fitted ``DecisionTreeClassifier`` holds; its classes must be 0, 1, ….

        Raises:
            InputError: it is not fitted, or of several outputs.
        """
        tree = getattr(estimator, "tree_", None)
        if tree is None or tree.n_outputs != 1 or list(estimator.classes_) != list(range(tree.value.shape[2])):
            raise InputError(f"a fitted classifier with one output and classes 0, 1, … is needed, got {estimator}")
        shares = torch.from_numpy(tree.value[:, 0].copy())
        counts = shares / shares.sum(1, keepdim=True) * torch.from_numpy(tree.weighted_n_node_samples.copy())[:, None]
        feature, threshold, left, right = (
            torch.from_numpy(np.array(array))
            for array in (tree.feature, tree.threshold, tree.children_left, tree.children_right)
        )
        return cls(feature, threshold, left, right, counts, estimator.get_params())

    @property
    def num_nodes(self) -> int:
        """Nodes, leaves included."""
        return len(self.left)

    @property
    def num_leaves(self) -> int:
        """Leaves."""
        return int((self.left == LEAF).sum())

    def leaves(self, x: Tensor) -> Tensor:
        """The leaf that each example comes to: int64 of shape (batch,)."""
        node = torch.zeros(len(x), dtype=torch.long, device=x.device)
        while bool((inside := self.left[node] != LEAF).any()):
            value = x.gather(1, self.feature[node].clamp(min=0)[:, None])[:, 0]
            below = torch.where(value <= self.threshold[node], self.left[node], self.right[node])
            node = torch.where(inside, below, node)
        return node

    def forward(self, x: Tensor) -> Tensor:
        """(batch, num_features) → (batch, num_classes)."""
        counts = self.counts[self.leaves(x)] + 0.5
        return (counts / counts.sum(1, keepdim=True)).log()

    def below(self) -> list[list[int]]:
        """Per node the nodes under it; children come after their parents, as scikit-learn grows them."""
        under: list[list[int]] = [[] for _ in range(self.num_nodes)]
        for node in range(self.num_nodes - 1, -1, -1):
            for child in (int(self.left[node]), int(self.right[node])):
                if child != LEAF:
                    under[node] += [child, *under[child]]
        return under

    def without(self, removed: Tensor) -> DecisionTree:
        """The tree without the marked nodes (bool, (num_nodes,)), which must be whole subtrees below nodes that stay.

        Raises:
            InputError: a node would lose one child of two, or a node below a removed one would stay.
        """
        stays = ~removed
        inner = self.left != LEAF
        lost_left, lost_right = removed[self.left], removed[self.right]
        if (
            bool(removed[0])
            or bool((inner & (lost_left != lost_right)).any())
            or bool((inner & removed & ~(lost_left & lost_right)).any())
        ):
            raise InputError("only whole subtrees go: both children of a node, and all that is below them")
        number = torch.cumsum(stays, 0) - 1
        leaf = ~inner | lost_left
        left, right = (torch.where(leaf, LEAF, number[child])[stays] for child in (self.left, self.right))
        feature = self.feature.masked_fill(leaf, LEAF)[stays]
        return DecisionTree(feature, self.threshold[stays], left, right, self.counts[stays], self.settings)

"""Pruning of decision trees, against scikit-learn and against all prunings of small trees."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.tree import DecisionTreeClassifier

import topiarist
from topiarist.errors import BudgetError, InputError
from topiarist.methods import cost_complexity, reduced_error
from topiarist.models import DecisionTree
from topiarist.models.tree import LEAF


def halves(load=load_breast_cancer):
    x, y = load(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(x))
    x, y = torch.from_numpy(x[order]).float(), torch.from_numpy(y[order])
    middle = len(x) // 2
    return [(x[:middle], y[:middle])], [(x[middle:], y[middle:])]


@pytest.fixture(params=[load_breast_cancer, load_wine])
def grown(request):
    train, held = halves(request.param)
    return DecisionTree.fit(*train[0]), train, held


def test_a_tree_is_that_of_scikit_learn(grown):
    tree, ((x, y),), ((held, _),) = grown
    theirs = DecisionTreeClassifier(random_state=0).fit(x.numpy(), y.numpy())
    assert tree(held).argmax(1).tolist() == theirs.predict(held.numpy()).tolist()
    assert (tree.num_nodes, tree.num_leaves) == (theirs.tree_.node_count, theirs.get_n_leaves())
    tree.threshold.data += 1.0
    assert tree(held).argmax(1).tolist() != theirs.predict(held.numpy()).tolist()


def test_cost_complexity_is_the_path_of_scikit_learn(grown):
    tree, train, held = grown
    (x, y), (other, _) = train[0], held[0]
    found = cost_complexity(tree, data=train, validation=held)
    assert found.curve[0]["sparsity"] == 0
    assert found.curve[-1]["num_leaves"] == 1
    assert max(row["accuracy"] for row in found.curve) == pytest.approx(
        float((found.model(other).argmax(1) == held[0][1]).double().mean())
    )
    alphas = DecisionTreeClassifier(random_state=0).cost_complexity_pruning_path(x.numpy(), y.numpy()).ccp_alphas
    assert {row["alpha"] for row in found.curve} == {max(0.0, a) for a in alphas}
    middle = found.curve[len(found.curve) // 2]
    budget = topiarist.Budget(sparsity=middle["sparsity"])
    chosen = cost_complexity(tree, data=train, budget=budget).model
    theirs = DecisionTreeClassifier(random_state=0, ccp_alpha=middle["alpha"] + 1e-12).fit(x.numpy(), y.numpy())
    assert chosen.num_nodes == theirs.tree_.node_count
    assert chosen(other).argmax(1).tolist() == theirs.predict(other.numpy()).tolist()


def prunings(tree, node=0):
    """Every set of nodes that may be made leaves, as the sets of nodes removed."""
    if int(tree.left[node]) == LEAF:
        return [frozenset()]
    below = tree.below()
    pairs = itertools.product(prunings(tree, int(tree.left[node])), prunings(tree, int(tree.right[node])))
    return [frozenset(below[node]), *(one | other for one, other in pairs)]


@pytest.mark.parametrize("seed", range(6))
def test_reduced_error_is_the_smallest_of_the_best(seed):
    generator = torch.Generator().manual_seed(seed)
    x, held = torch.randn(30, 3, generator=generator), torch.randn(40, 3, generator=generator)
    y, truth = ((v[:, 0] + 0.8 * torch.randn(len(v), generator=generator) > 0).long() for v in (x, held))
    tree = DecisionTree.fit(x, y, max_depth=3)
    errors = {}
    for cut in prunings(tree):
        removed = torch.zeros(tree.num_nodes, dtype=torch.bool)
        removed[list(cut)] = True
        errors[cut] = (int((tree.without(removed)(held).argmax(1) != truth).sum()), -len(cut))
    found = reduced_error(tree, data=[(held, truth)])
    cut = frozenset(found.plan.removed["nodes"].nonzero().flatten().tolist())
    assert errors[cut] == min(errors.values())
    assert found.curve[0]["num_leaves"] == found.model.num_leaves


def test_only_whole_subtrees_go(grown):
    tree, _, _ = grown
    child = int(tree.left[0])
    for nodes in ([child], [0], [child, int(tree.right[0])]):
        removed = torch.zeros(tree.num_nodes, dtype=torch.bool)
        removed[nodes] = True
        with pytest.raises(InputError, match="whole subtrees"):
            tree.without(removed)


def test_what_cannot_be_done_is_said(grown):
    tree, train, _ = grown
    with pytest.raises(InputError, match="examples"):
        reduced_error(tree, data=[])
    with pytest.raises(BudgetError, match="root alone"):
        cost_complexity(tree, data=train, budget=topiarist.Budget(sparsity=1.0))
    with pytest.raises(InputError, match="num_features"):
        DecisionTree.fit(torch.zeros(2), torch.zeros(2))
    with pytest.raises(InputError, match="fitted"):
        DecisionTree.of(DecisionTreeClassifier())


def test_a_tree_is_measured_and_evaluated_like_a_network(grown):
    tree, _, held = grown
    found = topiarist.measure(tree, held[0][0][:1], latency=False)
    assert found.num_params == tree.threshold.numel() + tree.counts.numel()

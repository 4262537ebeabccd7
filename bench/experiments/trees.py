"""Decision trees on two data sets of scikit-learn: size against accuracy on examples that no tree has seen.

    python bench/experiments/trees.py

A seed divides the examples: half to grow, a quarter held back to prune by, a quarter to test.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from cells import HERE, Table, markdown, mean_std
from sklearn import datasets

from topiarist.methods import cost_complexity, reduced_error
from topiarist.models import DecisionTree

SETS = {"breast cancer": datasets.load_breast_cancer, "digits": datasets.load_digits}
WAYS = ("as grown", "cost-complexity", "reduced-error")


def run(name: str, way: str, seed: int) -> dict[str, Any]:
    """One tree: its leaves and its accuracy on the test examples."""
    x, y = (torch.from_numpy(array) for array in SETS[name](return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    grown, held, test = ((x[i].float(), y[i]) for i in order.tensor_split([len(x) // 2, 3 * len(x) // 4]))
    tree = DecisionTree.fit(*grown)
    if way == "cost-complexity":
        tree = cost_complexity(tree, data=[grown], validation=[held]).model
    if way == "reduced-error":
        tree = reduced_error(tree, data=[held]).model
    accuracy = 100 * float((tree(test[0]).argmax(1) == test[1]).double().mean())
    return {"accuracy": accuracy, "num_leaves": tree.num_leaves, "summary": f"{tree.num_leaves} leaves, {accuracy:.2f}"}


def main() -> None:
    """Fill the table, then write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    table = Table("trees")
    for seed in range(parser.parse_args().seeds):
        for name in SETS:
            for way in WAYS:
                table.run(f"{name}/{way}/{seed}", lambda n=name, w=way, s=seed: run(n, w, s))
    (HERE / "trees.md").write_text(render(table))


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    rows = []
    for name in SETS:
        for way in WAYS:
            cells = [cell for key, cell in table.cells.items() if key.startswith(f"{name}/{way}/")]
            leaves, accuracies = ([cell[k] for cell in cells] for k in ("num_leaves", "accuracy"))
            rows.append([name, way, mean_std(leaves, 1), mean_std(accuracies)])
    return "\n".join(
        [
            "# Decision trees\n",
            "Leaves and test accuracy in percentage points, mean ± sample standard deviation over seeds, each another "
            "division of the examples. Generated from `trees.json` by `python bench/experiments/trees.py`.\n",
            markdown(["data", "tree", "leaves", "accuracy"], rows),
        ]
    )


if __name__ == "__main__":
    main()

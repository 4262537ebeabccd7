"""Every method: listed, documented, callable from Python and from the command line, true to its budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

import topiarist
from topiarist.cli.app import app
from topiarist.cli.recipe import read
from topiarist.errors import InputError
from topiarist.methods import METHODS, gradient_magnitude, magnitude, random_pruning
from topiarist.methods.base import method, resolve
from topiarist.recover import Checkpoints, TrainingRecipe

DOCS = Path(__file__).parents[1] / "docs" / "methods"


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_said_to_be_what_it_is(name):
    it = METHODS[name]
    page = (DOCS / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    for part in ("```python", "**Published**", "**Differs**"):
        assert part in page, part
    assert it.summary.endswith(".")
    assert it.when in ("before", "during", "after")
    assert it.headline
    assert getattr(topiarist.methods, name.replace("-", "_")) is it.run


def test_methods_are_listed_and_told():
    listed = CliRunner().invoke(app, ["methods"], env={"COLUMNS": "200"}).output
    assert all(name in listed for name in METHODS)
    told = CliRunner().invoke(app, ["methods", "magnitude"]).output
    assert "Han, Pool, Tran, Dally 2015" in told
    assert "scope='global'" in told
    refused = CliRunner().invoke(app, ["methods", "magnitudes"])
    assert refused.exit_code == 2
    assert "nearest: magnitude" in refused.output


def test_a_need_that_is_none_is_refused():
    with pytest.raises(InputError, match="luck"):
        method(paper="", structure="weight", headline="", needs=("luck",))


@pytest.mark.parametrize(("scope", "expected"), [("global", [1, 5]), ("layer", [3, 3])])
def test_magnitude_golden_values(scope, expected):
    """Weights 1 … 6 and 0.1 … 0.6, half to go: by layer three of each, together all the small ones but one."""
    net = nn.Sequential(nn.Linear(6, 1, bias=False), nn.Linear(1, 6, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(-torch.tensor([[1.0, 2, 3, 4, 5, 6]]))
        net[1].weight.copy_(torch.tensor([[0.1], [0.2], [0.3], [0.4], [0.5], [2.5]]))
    budget = topiarist.Budget(sparsity=0.5)
    plan = magnitude(net, torch.zeros(1, 6), scope=scope, recover="none", budget=budget).plan
    assert [int(gone.sum()) for gone in plan.removed.values()] == expected


def test_gradient_magnitude_golden_values():
    """L = Σ y and x = (4, 1, 1): |w g| = |w x| = (0.4, 2, 3): the smallest score goes, here of the smallest weight."""
    net = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.1, 2.0, -3.0]]))
    data = [(torch.tensor([[4.0, 1.0, 1.0]]), None)]
    options = {"data": data, "loss": lambda y, _: y.sum(), "recover": "none", "budget": topiarist.Budget(sparsity=0.3)}
    for scope in ("global", "layer"):
        result = gradient_magnitude(net, torch.zeros(1, 3), scope=scope, **options)
        assert result.plan.removed["weight"].tolist() == [True, False, False]


def test_random_pruning_takes_n_a_fraction_and_a_seed(net):
    x = torch.zeros(1, 4)
    assert random_pruning(net, x, n=7).plan.num_removed == 7
    half = topiarist.Budget(sparsity=0.5)
    one, other = (random_pruning(net, x, seed=seed, budget=half).plan for seed in (0, 1))
    assert [int(gone.sum()) for gone in one.removed.values()] == [16, 8]
    assert one != other
    assert one == random_pruning(net, x, seed=0, budget=half).plan


@pytest.mark.parametrize("run", [magnitude, gradient_magnitude])
def test_unknown_scopes_are_refused(net, run):
    with pytest.raises(InputError, match="nearest: global"):
        run(net, torch.zeros(1, 4), scope="globall")


def test_a_recipe_keeps_what_the_method_is_told_and_no_more(tmp_path):
    recipe = read(None, {"method": "magnitude", "options": "scope=layer", "schedule": "cubic", "steps": 2})
    assert recipe.method_options == {"scope": "layer", "schedule": "cubic", "steps": 2}
    recipe.write(tmp_path / "recipe.yaml")
    again = read(tmp_path / "recipe.yaml", {})
    assert again.identity == recipe.identity
    assert again.method_options == recipe.method_options
    assert "saliency" not in (tmp_path / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    "options",
    [
        "magnitude --options scope=layer --recover fine-tune",
        "lottery-ticket --sparsity 0.36",
        "snip",
        "movement",
        "sparsegpt --structure 2:4",
        "block-drop --sparsity 0.5",
        "low-rank --params 0.8 --options weighted=true",
    ],
)
def test_a_method_runs_from_the_command_line(tmp_path, options):
    arguments = f"prune --arch my --epochs 0.5 --threads 1 --method {options} --out {tmp_path / 'run'}".split()
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    again = CliRunner().invoke(app, ["prune", "--recipe", str(tmp_path / "run" / "recipe.yaml")])
    assert "complete" in again.output


def test_an_option_that_a_method_decides_is_refused_by_name(tmp_path):
    arguments = f"prune --arch my --epochs 0.1 --method snip --saliency l1 --out {tmp_path / 'run'}".split()
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2, found.output
    assert "the method snip decides 'saliency' itself, got 'l1'" in " ".join(found.output.split())


def test_an_option_that_no_method_has_is_refused_before_any_training(tmp_path):
    arguments = f"prune --arch my --epochs 0.1 --method wanda --options amnog=input --out {tmp_path / 'run'}".split()
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2, found.output
    assert "the method wanda has no option 'amnog' (nearest: among; its options: structure, among, sequential)" in (
        " ".join(found.output.split())
    )
    assert "train" not in found.output
    assert not (tmp_path / "run" / "dense").exists()


def test_an_error_of_the_users_own_stays_what_it_is(net):
    def loss(outputs, targets):
        raise TypeError("my_loss() got an unexpected keyword argument 'reduction'")

    given = {"data": [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))], "loss": loss}
    with pytest.raises(TypeError, match="reduction"):
        METHODS["snip"].told(net, torch.zeros(1, 4), {"budget": topiarist.Budget(sparsity=0.5)}, **given)


class Residual(nn.Module):
    """Two residual blocks of convolutions, then a classifier: something to cut for every structure."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(*(Branch() for _ in range(2)))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.two(torch.relu(self.one(x)))


BUDGETS = {"two-four": {}, "low-rank": {"params": 0.8}, "block-drop": {"sparsity": 0.5}}


LONGER = ("lottery-ticket", "self-adaptive")  # they need more than two batches, and have tests of their own


@pytest.mark.parametrize("name", [n for n, it in METHODS.items() if it.structure != "tree" and n not in LONGER])
def test_every_method_takes_what_the_command_line_hands_over(name):
    """Data, loss, evaluation, recipe, checkpoints, rows; it meets its budget and leaves the model as it was."""
    it, model, told = METHODS[name], Residual(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, checkpoints = torch.randn(12, 1, 6, 6), Checkpoints(steps=[0])
    checkpoints.save(0, model)
    unit = BUDGETS.get(name, {"macs": 0.6} if it.structure not in ("weight", "layer") else {"sparsity": 0.5})
    result = it.run(
        model,
        x[:1],
        budget=topiarist.Budget(**unit) if unit else None,
        data=[(x, torch.arange(12) % 3)] * 2,
        loss=F.cross_entropy,
        evaluate=lambda net: {"accuracy": 0.5},
        recipe=TrainingRecipe(epochs=1, lr=0.01),
        checkpoints=checkpoints,
        folder=None,
        on_step=told.append,
    )
    for key, value in unit.items():
        assert result.plan.achieved[key] >= value - 0.05 if key == "sparsity" else result.plan.achieved[key] <= value
    assert result.curve[-1]["accuracy"] == 0.5
    assert len(told) >= len(result.curve) + len([row for row in result.history if row["lr"]])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_model_stays_as_it_was(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    data = [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))]
    gradient_magnitude(net, torch.zeros(1, 4), data=data, loss=F.cross_entropy, budget=topiarist.Budget(sparsity=0.5))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_method_of_the_users_own_is_found():
    @method(paper="mine", structure="weight", headline="none")
    def my_own(model, example_inputs, **options):
        """Do as I say."""
        return magnitude(model, example_inputs, recover="none", **options)

    try:
        assert resolve("my-own").summary == "Do as I say."
    finally:
        del METHODS["my-own"]

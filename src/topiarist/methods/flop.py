"""FLOP: ranks of factorised weights, pruned by L0 gates to a size that is given (Wang, Wohlwend, Lei 2020)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from topiarist.allocation import Candidates
from topiarist.inputs import call
from topiarist.mask import AugmentedLagrangian
from topiarist.mask.factors import Factors
from topiarist.mask.gates import HardConcrete
from topiarist.methods.base import method
from topiarist.methods.loop import descend, each_step, finished
from topiarist.plan import Budget
from topiarist.planning import Evaluate, Loss
from topiarist.pruning import OnStep, PruneResult, prune
from topiarist.recover.train import Row


@method(
    paper="Wang, Wohlwend, Lei 2020, Structured pruning of large language models",
    structure="rank",
    needs=("data", "training"),
    when="during",
    headline="character models on enwik8 at half to a fifth of the size, twice as fast (figures not confirmed)",
)
def flop(
    model: nn.Module,
    example_inputs: Any,
    *,
    data: Iterable[Any],
    loss: Loss,
    budget: Budget,
    epochs: float = 10,
    lr: float = 1e-3,
    gate_lr: float = 1e-2,
    multiplier_lr: float = 0.1,
    warm_up: float = 0.25,
    drop: float = 0.05,
    keep: Sequence[str] = (),
    evaluate: Evaluate | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> PruneResult:
    """Train W = P diag(z) Q with hard-concrete gates on the ranks towards the ``budget``, and leave two smaller layers.

    min over weights and gates, max over λ: loss + λ₁ (ŝ − t) + λ₂ (ŝ − t)², ŝ the expected sparsity of the factors and
    t that which makes the model as large as the budget says (a ``sparsity`` is t itself), reached after the part
    ``warm_up`` of the training. Adam with ``lr`` for the weights, ``gate_lr`` for the gates, ``multiplier_lr`` for λ;
    ``drop`` is P(s < ½) of a gate at first. In the end the components that are least likely needed go until the budget
    is met; those left are folded with their soft gates, and each weight becomes two layers. Other options are those of
    `topiarist.prune`: ``recover`` trains what is left without gates. The curve's ``expected_sparsity`` is ŝ,
    ``min_rank`` the least rank that is left.

    Raises:
        InputError: the budget is not one of sparsity, compression, params or macs, or no layer has a rank that pays.
        BudgetError: what has no factors is larger than the budget.
    """
    work = copy.deepcopy(model)
    factors = Factors(work, example_inputs, partial(HardConcrete, drop=drop, beta=1.0, exact_count=True), keep)
    target, unit = factors.target(budget), budget.unit
    rows = _trained(work, factors, target, unit, data, loss, epochs, (lr, gate_lr, multiplier_lr), warm_up, on_step)
    kept = factors.kept(target, unit)
    found = {
        "expected_sparsity": float(factors.expected_sparsity(unit).detach()),
        "min_rank": min(int(k.count_nonzero()) for k in kept.values()),
    }
    factors.fold(kept)
    for ignored in ("checkpoints", "folder", "recipe"):  # the model's own training is not gone back to
        options.pop(ignored, None)
    told = {"data": data, "loss": loss, **options}
    result = prune(work, example_inputs, structure="rank", allocation=_Left(kept), keep=keep, **told)
    return finished(
        result, result.model, rows, lambda small: {**found, **(evaluate(small) if evaluate else {})}, on_step
    )


@dataclass(frozen=True, repr=False)
class _Left:
    """The allocation that leaves so many components: those that were kept are all that the weights are made of."""

    kept: Mapping[str, Tensor]
    needs_budget: ClassVar[bool] = False

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        left = {name: int(kept.count_nonzero()) for name, kept in self.kept.items()}
        return {u.name: candidates.lowest(u, u.num - left[u.name]) for u in candidates.units}


def _trained(
    model: nn.Module,
    factors: Factors,
    target: float,
    unit: str,
    data: Iterable[Any],
    loss: Loss,
    epochs: float,
    rates: tuple[float, float, float],
    warm_up: float,
    on_step: OnStep | None,
) -> list[Row]:
    """Train factors, gates and all other parameters in place."""
    lagrangian = AugmentedLagrangian(target)
    products = [*factors.left, *factors.right, *factors.others]
    optimizers = (
        torch.optim.Adam(products, rates[0]),
        torch.optim.Adam(factors.gates.parameters(), rates[1]),
        torch.optim.Adam(lagrangian.parameters(), rates[2], maximize=True),
    )

    def step(inputs: Any, targets: Any, progress: float) -> Row:
        lagrangian.target = target * min(1.0, progress / warm_up) if warm_up else target
        task = loss(call(model, inputs), targets)
        expected = factors.expected_sparsity(unit)
        descend(task + lagrangian(expected), *optimizers)
        return {"loss": float(task.detach()), "lr": rates[0], "expected_sparsity": float(expected.detach())}

    factors.attach()
    try:
        return each_step(model, data, epochs, step, on_step=on_step)
    finally:
        factors.detach()

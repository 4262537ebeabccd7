"""Transformable architecture search: widths and depths by gradient descent, then distillation (Dong and Yang 2019)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.errors import BudgetError, InputError, ShrinkError
from topiarist.graph import Axes
from topiarist.inputs import as_batch, call
from topiarist.mask.widths import FRACTIONS, Depths, Widths
from topiarist.methods.base import method
from topiarist.methods.loop import descend, each_step, finished
from topiarist.methods.stages import as_first_step
from topiarist.plan import Budget, Plan
from topiarist.planning import Evaluate, Loss, Planner
from topiarist.pruning import OnStep, PruneResult, sound_planner
from topiarist.recover import Distil, RecoveryContext, TrainingRecipe
from topiarist.recover.reinitialize import reinitialize
from topiarist.recover.train import Row, device_of, to_device
from topiarist.shrink import shrink, verify
from topiarist.structure import resolve
from topiarist.structure.layer import Layer

_WEIGHT_DECAY = 5e-4


@method(
    paper="Dong, Yang 2019, Network pruning via transformable architecture search",
    structure="channel",
    needs=("data", "training"),
    when="after",
    headline="ResNet-56 on CIFAR-10 93.69 at 0.473 of the FLOPs, dense 93.9 (from memory)",
)
def architecture_search(
    model: nn.Module,
    example_inputs: Any,
    *,
    data: Iterable[Any],
    loss: Loss,
    budget: Budget,
    epochs: float = 10,
    lr: float = 0.1,
    logits_lr: float = 1e-3,
    strength: float = 2.0,
    tolerance: float = 0.05,
    temperatures: tuple[float, float] = (10.0, 0.1),
    fractions: Sequence[float] = FRACTIONS,
    validation: Iterable[Any] | None = None,
    distil: Distil | None = None,
    recipe: TrainingRecipe | None = None,
    seed: int = 0,
    keep: Sequence[str] = (),
    evaluate: Evaluate | None = None,
    on_step: OnStep | None = None,
    **_: Any,
) -> PruneResult:
    """Search the widths and depths of ``model`` under a budget in MACs, and distil it into the network found.

    Weights (SGD, ``lr`` on a cosine, drawn anew from ``seed``) descend the loss on every second batch of ``data``, the
    logits of widths and depths (Adam, ``logits_lr``) the loss + ``strength`` · L_cost on the others, or on
    ``validation``: L_cost = ±log E[F], + where the likeliest network costs more than the budget, − where it costs less
    than 1 − ``tolerance`` of it, 0 between. The temperature of the draws falls from one of ``temperatures`` to the
    other. Each axis takes the likeliest of the candidates, ``fractions`` of its channels; each chain of layers that
    may be passed by the likeliest depth; where they miss the band, the least improbable changes bring them into it.
    What is left is drawn anew and trained by ``distil`` towards ``model``, or with ``recipe`` by the paper's weights
    (0.9 of the loss from logits at temperature 4); without either it is returned untrained.

    Raises:
        InputError: the budget is not one of ``macs``, nothing can be searched, or a parameter cannot be drawn anew.
        BudgetError: the smallest candidates are more than the budget.
    """
    if budget.unit != "macs":
        raise InputError(f"the search counts multiply–accumulates, got {budget!r}; try Budget(macs=0.5)")
    work = copy.deepcopy(model)
    reinitialize(work, seed)
    space = Space.of(work, example_inputs, keep, fractions)
    rows = _search(space, data, validation, loss, budget.value, epochs, (lr, logits_lr), (strength, tolerance),
                   temperatures, on_step)  # fmt: skip
    choice = space.within(space.likeliest(), budget.value, tolerance)
    plan = space.plan(choice, {"macs": budget.value})
    small = shrink(work, plan, example_inputs)
    checked = verify(work, small, plan, example_inputs)
    if not checked.passed:
        raise ShrinkError(f"{checked}; the model is untouched. Please report this model: a rule is wrong")
    reinitialize(small, seed)
    if distil is None and recipe is not None:
        distil = Distil(recipe, temperature=4.0, logits=0.9, task=0.1)
    if distil is not None:
        progress = as_first_step(on_step)
        rows += distil(small, RecoveryContext(data=data, loss=loss, dense=model, plan=plan, progress=progress))
    why = f"sizes may differ between layers of {type(model).__name__}, which no config describes"
    result = PruneResult(small, plan, (), (), checked, space.planner.excluded, "topiarist.load", why)
    return finished(result, small, rows, evaluate, on_step)


Choice = tuple[tuple[int, ...], tuple[int, ...]]  # which candidate of each axis, and of each chain


@dataclass(frozen=True, eq=False)
class Space:
    """What is searched: the widths and the depths of a model, and what each choice of them costs."""

    planner: Planner
    widths: Widths
    depths: Depths

    @classmethod
    def of(
        cls, model: nn.Module, example_inputs: Any, keep: Sequence[str] = (), fractions: Sequence[float] = FRACTIONS
    ) -> Space:
        """The search space of a model: every axis of channels that something reads, every chain of layers."""
        planner = Planner.of(model, example_inputs, resolve("channel"), keep, None)
        planner = sound_planner(planner, example_inputs)
        widths = Widths(model, planner.axes, planner.units, fractions)
        if not widths.sizes:
            raise InputError("no axis of channels is read by weights alone: there is no width to search")
        return cls(planner, widths, Depths(model, chains(planner.axes, keep)))

    @property
    def model(self) -> nn.Module:
        """The network that is searched."""
        return self.planner.model

    @property
    def logits(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Those of the axes, and those of the chains."""
        return [*self.widths.logits], [*self.depths.logits]

    def cost(self, widths: Mapping[str, Tensor], depths: Sequence[Tensor]) -> Tensor:
        """E[F] / F of the whole model: the multiply–accumulates that probabilities of widths and depths mean, taken as
        independent, a scalar."""
        axes, sizes = self.planner.axes, self.widths.expected(widths)
        there = self.depths.present(depths)
        total = torch.zeros((), dtype=torch.float64)
        for cost in axes.costs:
            part = torch.ones((), dtype=torch.float64)
            for axis in cost.axes:
                part = part * axes.graph.measure(axis, sizes)  # type: ignore[arg-type]
            for name in {*cost.modules} & {*there}:
                part = part * there[name].cpu()
            total = total + part.cpu()
        return total / axes.num_macs()

    def likeliest(self) -> Choice:
        """The candidates of the largest probabilities."""
        widths, depths = (tuple(int(x.argmax()) for x in logits) for logits in self.logits)
        return widths, depths

    def cost_of(self, choice: Choice) -> float:
        """The part of the multiply–accumulates that a network of these sizes has."""
        widths, depths = (
            [F.one_hot(torch.tensor(j), len(x)).double() for j, x in zip(chosen, logits, strict=True)]
            for chosen, logits in zip(choice, self.logits, strict=True)
        )
        return float(self.cost(dict(zip(self.widths.sizes, widths, strict=True)), depths))

    def within(self, choice: Choice, target: float, tolerance: float) -> Choice:
        """The choice, with the least improbable steps down until it costs no more than the target, then up while it
        costs less than 1 − ``tolerance`` of it.

        Raises:
            BudgetError: the smallest candidates cost more than the target.
        """
        while self.cost_of(choice) > target:
            smaller = list(self._steps(choice, -1))
            if not smaller:
                found = self.cost_of(choice)
                raise BudgetError(
                    f"asked for macs={target:g}, nearest is macs={found:.6g}: all candidates are smallest"
                )
            choice = min(smaller, key=lambda step: step[0])[1]
        while (now := self.cost_of(choice)) < (1 - tolerance) * target:
            larger = [step for step in self._steps(choice, 1) if self.cost_of(step[1]) <= target]
            if not larger:  # every step up is too far: one up and another down
                pairs = [
                    (less + more, both) for less, up in self._steps(choice, 1) for more, both in self._steps(up, -1)
                ]
                larger = [step for step in pairs if now < self.cost_of(step[1]) <= target]
            if not larger:
                break
            choice = min(larger, key=lambda step: step[0])[1]
        return choice

    def _steps(self, choice: Choice, by: int) -> Iterator[tuple[float, Choice]]:
        """The choices that differ in one candidate, the next one up or down, with how much less probable they are."""
        for kind, parts in enumerate(self.logits):
            for place, logits in enumerate(parts):
                now = choice[kind][place]
                if 0 <= now + by < len(logits):
                    changed = (*choice[kind][:place], now + by, *choice[kind][place + 1 :])
                    less = float(logits[now].detach() - logits[now + by].detach())
                    yield less, (changed, choice[1]) if kind == 0 else (choice[0], changed)

    def plan(self, choice: Choice, requested: Mapping[str, float]) -> Plan:
        """The first channels of each axis stay, and the first layers of each chain."""
        removed = {u.name: torch.zeros(u.num, dtype=torch.bool) for u in self.planner.units}
        for (name, sizes), j in zip(self.widths.sizes.items(), choice[0], strict=True):
            removed[name] = torch.arange(max(sizes)) >= sizes[j]
        gone = {
            name for (names, least), j in zip(self.depths.chains, choice[1], strict=True) for name in names[least + j :]
        }
        axes, left = self.planner.axes, self.planner.axes.without(gone)
        after = axes.sizes(removed)
        achieved = self.planner.price(removed, wanted=("sparsity",))
        params = left.num_params(after) / axes.num_params()
        achieved |= {"compression": 1 / params, "params": params, "macs": left.num_macs(after) / axes.num_macs()}
        plan = self.planner.make(removed, requested=requested, achieved=achieved)
        return replace(plan, bypassed={name: axes.bypasses[name] for name in sorted(gone)})


def chains(axes: Axes, keep: Sequence[str] = ()) -> list[tuple[list[str], int]]:
    """The layers that may be passed by, in runs that follow each other in one container; where nothing of the container
    comes before the run, one layer stays."""
    try:
        units = Layer().units(axes, keep)
    except InputError:
        return []
    found: list[list[str]] = []
    able = [name for each in units for name in each.modules if axes.bypasses[name] == "x"]
    for name in sorted(able, key=lambda name: axes.depths[name]):
        if found and _follows(found[-1][-1], name):
            found[-1].append(name)
        else:
            found.append([name])
    return [(names, int(names[0].rpartition(".")[2] == "0")) for names in found]


def _follows(one: str, other: str) -> bool:
    (path, _, place), (its_path, _, its_place) = one.rpartition("."), other.rpartition(".")
    return path == its_path and place.isdigit() and its_place.isdigit() and int(its_place) == int(place) + 1


def cost_term(expected: Tensor, found: float, target: float, tolerance: float) -> Tensor:
    """L_cost: log E[F] where the likeliest network costs more than the target, −log E[F] where it costs less than
    1 − tolerance of it, and 0 between.

    Example:
        >>> [float(cost_term(torch.tensor(0.5), found, 0.5, 0.05)) for found in (0.49, 0.5)]
        [0.0, 0.0]
    """
    if found > target:
        return expected.log()
    return -expected.log() if found < (1 - tolerance) * target else 0.0 * expected


def _search(
    space: Space,
    data: Iterable[Any],
    validation: Iterable[Any] | None,
    loss: Loss,
    target: float,
    epochs: float,
    rates: tuple[float, float],
    pressure: tuple[float, float],
    temperatures: tuple[float, float],
    on_step: OnStep | None,
) -> list[Row]:
    """Train weights and logits in place, in turn."""
    model, (strength, tolerance) = space.model, pressure
    weights = torch.optim.SGD(model.parameters(), rates[0], 0.9, weight_decay=_WEIGHT_DECAY, nesterov=True)
    logits = [*space.widths.parameters(), *space.depths.parameters()]
    sizes = torch.optim.Adam(logits, rates[1], betas=(0.5, 0.999), weight_decay=1e-3)
    held_out = _cycle(validation, model) if validation is not None else None
    turn = 0

    def cost() -> tuple[Tensor, Row]:
        expected, found = space.cost(space.widths.probabilities(), space.depths.probabilities()), space.likeliest()
        macs = space.cost_of(found)
        return cost_term(expected, macs, target, tolerance), {"macs": macs, "expected_macs": float(expected.detach())}

    def step(inputs: Any, targets: Any, progress: float) -> Row:
        nonlocal turn
        turn += 1
        now = temperatures[0] + progress * (temperatures[1] - temperatures[0])
        space.widths.temperature = space.depths.temperature = now
        rate = rates[0] * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * progress))))
        weights.param_groups[0]["lr"] = rate
        row: Row = {"lr": rate}
        if held_out is not None or turn % 2:
            row["loss"] = descend(loss(call(model, inputs), targets), weights)
        if held_out is not None or not turn % 2:
            inputs, targets = next(held_out) if held_out is not None else (inputs, targets)
            term, about = cost()
            task = loss(call(model, inputs), targets)
            descend(task + strength * term.to(task), sizes)
            row = {"loss": float(task.detach()), **row, **about}
        return row

    space.widths.replaced.attach()
    space.depths.attach()
    try:
        return each_step(model, data, epochs, step, on_step=on_step)
    finally:
        space.depths.detach()
        space.widths.replaced.detach()


def _cycle(data: Iterable[Any], model: nn.Module) -> Iterator[tuple[Any, Any]]:
    while True:
        for batch in data:
            yield to_device(as_batch(batch), device_of(model))

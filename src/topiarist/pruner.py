"""Pruning while training: an object that a training loop of the user's own calls after each step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

from topiarist import schedule as schedules
from topiarist import structure as structures
from topiarist.allocation import Allocation
from topiarist.asked import require, whole_number
from topiarist.errors import FormatError, InputError
from topiarist.mask import mask, unmask
from topiarist.mask.soft import zero_once
from topiarist.plan import Budget, Plan
from topiarist.planning import Loss, Planner
from topiarist.pruning import plan_at, sound_planner
from topiarist.saliency import Saliency
from topiarist.schedule import Schedule, may_fall
from topiarist.structure import Structure


class Pruner:
    """Moves the masks of a model in training along a schedule; call `step` after each ``optimizer.step()``.

    At training steps t = begin, begin + every, … up to ``end`` the units are scored anew, on the weights as they are,
    and masked as the schedule says for progress (t − begin) / (end − begin) (Zhu & Gupta 2017); in between the masks
    hold, through any optimizer, and add nothing to the forward pass, so that compiled models stay compiled. The model
    is masked in place: `plan` says what is gone, `topiarist.shrink(model, pruner.plan, example_inputs)` makes it
    smaller. Leave a fifth of the training or more after ``end``, to recover.

    Args:
        model: the model in training; a compiled one is taken for the model it was made of.
        begin: the training step of progress 0, counted in calls of `step`.
        end: the training step by which the last update has come.
        every: training steps between updates.
        allow_regrow: soft pruning (He et al. 2018): what goes is zeroed once and learns on until the next update,
            which chooses afresh; the last one holds. Without it what is gone stays gone.

    Other arguments are those of `topiarist.prune`.

    Raises:
        InputError: an argument cannot be used.
        TraceError: the model does not run on ``example_inputs``.
        BudgetError: at an update, the budget cannot be reached.

    Example:
        >>> import torch
        >>> model = nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> pruner = Pruner(model, torch.zeros(1, 4), budget=Budget(sparsity=0.75), schedule="linear", end=3)
        >>> for _ in range(4):
        ...     model(torch.ones(1, 4)).sum().backward()
        ...     optimizer.step()
        ...     _ = pruner.step()
        >>> int((model.weight == 0).sum()), pruner.plan.achieved["sparsity"]
        (6, 0.75)
        >>> _ = unmask(model)
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        budget: Budget,
        end: int,
        begin: int = 0,
        every: int = 1,
        structure: str | Structure = "weight",
        saliency: str | Saliency = "l2",
        allocation: str | Mapping[str, float] | Allocation = "global",
        schedule: str | Schedule | Mapping[str, str | Schedule] = "cubic",
        allow_regrow: bool = False,
        data: Iterable[Any] | None = None,
        loss: Loss | None = None,
        keep: Sequence[str] = (),
        round_to: int | Literal["auto"] | None = None,
        uniform: str | None = None,
    ) -> None:
        require(budget, Budget, "a budget is a Budget", "budget=Budget(sparsity=0.5), or Budget(macs=0.5)")
        whole_number(begin, "begin", least=0, attempt="begin=0")
        whole_number(end, "end", least=0, attempt="end=begin + 10 * every")
        whole_number(every, "every", least=1, attempt="every=1")
        if end - begin < every:
            raise InputError(
                f"updates come every {every} steps from {begin} to {end}: there must be one; try end=begin + 10 * every"
            )
        model = getattr(model, "_orig_mod", model)
        found = structures.resolve(structure, round_to, model)
        planner = Planner.of(model, example_inputs, found, keep, uniform)
        self._planner, self._budget = sound_planner(planner, example_inputs).timed(budget)
        self._saliency = self._planner.criterion(saliency)
        self._allocation = self._planner.allocation(allocation, self._saliency, data, loss)
        self._schedule = schedules.resolve(schedule)
        self._data, self._loss = data, loss
        self._begin, self._every, self._num_updates = begin, every, (end - begin) // every
        self._allow_regrow = allow_regrow
        self._step = 0
        self._plan: Plan | None = None
        if begin == 0 and getattr(self._schedule, "initial", 0.0) > 0:
            self._update(0)

    @property
    def planner(self) -> Planner:
        """What makes its plans."""
        return self._planner

    @property
    def plan(self) -> Plan | None:
        """What is removed by now; None before the first update."""
        return self._plan

    def step(self) -> Plan | None:
        """Count a training step; where it is one of an update, move the masks and return the new plan."""
        self._step += 1
        number, rest = divmod(self._step - self._begin, self._every)
        if rest or not 0 <= number <= self._num_updates:
            return None
        return self._update(number)

    def state_dict(self) -> dict[str, Any]:
        """Where the pruner is, as a dict of plain values; the weights are in the model's own state dict."""
        return {"step": self._step, "plan": None if self._plan is None else self._plan.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, after the model and the optimizer were loaded; masks are put on again.

        Raises:
            FormatError: the state is not one of a pruner, or is damaged.
            InputError: its plan does not fit the model.
        """
        step, text = state.get("step"), state.get("plan")
        if type(step) is not int or step < 0 or not (text is None or isinstance(text, str)):
            raise FormatError(f"not the state of a pruner: step {step!r}, plan {text!r:.40}; pass what state_dict gave")
        plan = None if text is None else Plan.from_json(text)
        unmask(self._planner.model, restore=False)
        if plan is not None and self._holds(step):
            mask(self._planner.model, plan)
        self._step, self._plan = step, plan

    def _update(self, number: int) -> Plan:
        model = self._planner.model
        plan = plan_at(
            self._planner,
            self._saliency,
            self._allocation,
            self._budget,
            self._schedule,
            number / self._num_updates,
            None if self._allow_regrow else self._plan,
            data=self._data,
            loss=self._loss,
        )
        if self._allow_regrow or may_fall(self._schedule):
            unmask(model, restore=False)  # what comes back does so as it is now
        if number < self._num_updates and self._allow_regrow:
            zero_once(model, plan, self._planner.axes)
        else:
            mask(model, plan)
        self._plan = plan
        return plan

    def _holds(self, step: int) -> bool:
        return not self._allow_regrow or step >= self._begin + self._num_updates * self._every

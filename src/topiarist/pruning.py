"""The whole loop in one call: plan, mask, recover, and again along a schedule; then shrink and verify."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from topiarist import recover as recoveries
from topiarist import schedule as schedules
from topiarist import structure as structures
from topiarist.allocation import Allocation, Candidates, fit
from topiarist.allocation.base import needs_scores, share
from topiarist.allocation.least import MinUnits
from topiarist.asked import named_numbers, whole_number
from topiarist.errors import InputError, ShrinkError
from topiarist.journal import Journal, Progress, made_folder
from topiarist.mask import mask, unmask
from topiarist.mask.attach import active_plan, reapply
from topiarist.plan import Budget, Plan, Units
from topiarist.planning import Evaluate, Loss, Planner
from topiarist.recover import Checkpoints, Recovery, RecoveryContext, TrainingRecipe
from topiarist.recover.train import Row
from topiarist.saliency import Compensating, Random, Saliency, check_finite
from topiarist.schedule import PerLayer, Schedule, may_fall
from topiarist.shrink import Verification, shrink, verify
from topiarist.stats import Statistics
from topiarist.structure import Structure
from topiarist.structure.base import parameters_of

TIMES = "latency.json"  # in the folder of a run

OnStep = Callable[[Mapping[str, float]], None]
Accept = Callable[[Mapping[str, float]], bool]


@dataclass(frozen=True, eq=False)
class PruneResult:
    """What `prune` returns.

    ``model`` is smaller for structures that shrink, and masked (see `topiarist.unmask`) for single weights. ``curve``
    has one row per pruning step: ``step``, the fractions `Plan.achieved` names, and what ``evaluate`` returned after
    recovery; ``history`` one row per training step: ``step`` (of pruning), ``batch``, ``loss``, ``lr``. ``excluded``
    maps axes that could not be cut in this model to the reason. ``loads_with`` says what reads the model once it is
    saved, ``"from_pretrained"``, ``"load_state_dict"`` or ``"topiarist.load"``, and ``loads_with_reason`` why.
    """

    model: nn.Module
    plan: Plan
    curve: tuple[Mapping[str, float], ...]
    history: tuple[Mapping[str, float], ...]
    verification: Verification | None
    excluded: Mapping[str, str]
    loads_with: str
    loads_with_reason: str


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    structure: str | Structure = "weight",
    saliency: str | Saliency = "l2",
    allocation: str | Mapping[str, float] | Allocation = "global",
    budget: Budget | None = None,
    schedule: str | Schedule | Mapping[str, str | Schedule] = "one-shot",
    steps: int | None = None,
    recover: str | Recovery = "none",
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    evaluate: Evaluate | None = None,
    keep: Sequence[str] = (),
    min_units: MinUnits | None = None,
    round_to: int | Literal["auto"] | None = None,
    uniform: str | None = None,
    sequential: bool | Literal["deep-first"] = False,
    accept: Accept | None = None,
    recipe: TrainingRecipe | None = None,
    checkpoints: Checkpoints | None = None,
    folder: str | Path | None = None,
    on_step: OnStep | None = None,
) -> PruneResult:
    """Prune ``model`` to ``budget``: plan, mask and recover at each step of ``schedule``, then shrink and verify.

    ``model`` is left as it is. Arguments not listed are those of `topiarist.plan`.

    Args:
        schedule: how much at which step: ``"one-shot"``, ``"linear"``, ``"cubic"``, ``"cosine"``, ``"exponential"``,
            ``"constant-fraction"``, ``"one-cycle"``, ``"movement"``, ``"dense-sparse-dense"``, a function
            ``(progress, final) -> fraction removed``, or a dict of them by layer name pattern or type.
        steps: how many pruning steps; defaults to what the schedule itself asks for, else 1. More than one without a
            budget is for an allocation that can be asked again (``repeats = True``, as `Outliers`).
        recover: what follows each cut: ``"none"``; without training ``"no-training"``, ``"reconstruct"``,
            ``"compensate"``, ``"recalibrate"``; with it ``"fine-tune"``, ``"distil"``, ``"rewind"``, ``"lr-rewind"``,
            ``"reinitialize"``, ``"scratch-E"``, ``"scratch-B"``; or an object such as ``FineTune(recipe)``.
        data: batches ``(inputs, targets)``, for criteria that need gradients and for recovery.
        sequential: cut one set of units after the other, from the input on, each scored on what those before it have
            left, with a pass over ``data`` each; statistics are those of one set at a time. ``"deep-first"`` goes
            from the output on. Without, all see the whole model.
        accept: called with each row of the curve; a step that it refuses is undone, and the run ends with the one
            before. What it looks at belongs in ``evaluate``.
        loss: maps outputs and targets to a scalar.
        evaluate: called on the model after each step; what it returns (``{"accuracy": …}``) joins the curve.
        recipe: how the model was trained, for recoveries that replay it.
        checkpoints: states of that training, for recoveries that rewind to one.
        folder: where each completed step is saved; the same call goes on after the last one.
        on_step: called with every row of training and of the curve, and with ``timing`` and ``num_timings`` while parts
            are timed for a budget of ``latency_ms``.

    Raises:
        InputError: an argument cannot be used, or ``folder`` holds another run.
        TraceError: the model does not run on ``example_inputs``.
        BudgetError: the budget cannot be reached.
        ShrinkError: the smaller model is not the masked one.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> result = prune(net, torch.zeros(1, 4), structure="channel", budget=Budget(macs=0.5))
        >>> result.model[0].out_features, result.verification.passed
        (4, True)
    """
    folder = made_folder(folder)
    planner = sound_planner(
        Planner.of(model, example_inputs, structures.resolve(structure, round_to, model), keep, uniform, min_units),
        example_inputs,
    )
    criterion = planner.criterion(saliency)
    described = repr(budget)
    planner, budget = planner.timed(budget, None if folder is None else folder / TIMES, _timing(on_step))
    run = _Run(
        planner=planner,
        saliency=criterion,
        allocation=planner.allocation(allocation, criterion, data, loss, evaluate),
        schedule=schedules.resolve(schedule),
        recover=recoveries.resolve(recover),
        context=RecoveryContext(data=data, loss=loss, checkpoints=checkpoints, recipe=recipe, dense=model),
        evaluate=evaluate,
        on_step=on_step,
        sequential=sequential,
        accept=accept,
    )
    num_steps = _num_steps(steps, run.schedule, run.allocation, budget)
    journal = Journal.open(folder, model, run.describe(described, num_steps))
    return finished(run.planner, *run.loop(copy.deepcopy(model), budget, num_steps, journal), example_inputs)


def finished(planner: Planner, work: nn.Module, progress: Progress, example_inputs: Any) -> PruneResult:
    """What a run has made of ``work``, which the plan masks: shrunk and verified where the structure is physical.

    Raises:
        ShrinkError: the smaller model is not the masked one.
    """
    plan, checked = progress.plan, None
    if plan is None:  # no step was accepted
        none = {u.name: torch.zeros(u.num, dtype=torch.bool) for u in planner.units}
        plan = planner.make(none, achieved=planner.price(none))
    if planner.structure.is_physical:
        unmask(work, restore=not plan.bases)  # what has no value at zero, as 1 / x, is proved where it has one
        small = shrink(work, plan, example_inputs)
        checked = verify(work, small, plan, example_inputs)
        if not checked.passed:
            raise ShrinkError(f"{checked}; the model is untouched. Please report this model: a rule is wrong")
        work = small
    curve, history, loading = tuple(progress.curve), tuple(progress.history), _loading(work, planner)
    return PruneResult(work, plan, curve, history, checked, planner.excluded, *loading)


@dataclass(frozen=True, eq=False)
class _Run:
    planner: Planner
    saliency: Saliency
    allocation: Allocation
    schedule: Schedule | PerLayer
    recover: Recovery
    context: RecoveryContext
    evaluate: Evaluate | None
    on_step: OnStep | None
    sequential: bool | str = False
    accept: Accept | None = None

    def __post_init__(self) -> None:
        if self.sequential not in (False, True, "deep-first"):
            raise InputError(f"sequential is True, False or 'deep-first', got {self.sequential!r}")
        if hasattr(self.recover, "each") and not self.sequential:
            raise InputError(f"{self.recover} follows each set of units: say sequential=True")

    def describe(self, budget: str, num_steps: int) -> dict[str, Any]:
        """What makes two calls the same run; objects are told apart by their repr."""
        return {
            "structure": repr(self.planner.structure),
            "saliency": _describe(self.saliency),
            "allocation": _describe(self.allocation),
            "schedule": _describe(self.schedule),
            "recover": _describe(self.recover),
            "budget": budget,
            "keep": list(self.planner.keep),
            "num_steps": num_steps,
            **({"sequential": self.sequential} if self.sequential else {}),
            **({} if self.accept is None else {"accept": _describe(self.accept)}),
            **({} if self.planner.min_units is None else {"min_units": repr(self.planner.min_units)}),
            **({} if self.planner.axes.blueprint is None else {"uniform": self.planner.axes.blueprint.name}),
        }

    def loop(
        self, work: nn.Module, budget: Budget | None, num_steps: int, journal: Journal
    ) -> tuple[nn.Module, Progress]:
        """Plan, mask, recover, evaluate, save; from where the journal left off."""
        work, progress = journal.resume(work)
        try:
            return work, self._steps(work, progress, budget, num_steps, journal)
        except BaseException:
            unmask(work, restore=False)  # whoever looks at the error keeps the model alive, and with it the mask's hook
            raise

    def _steps(
        self, work: nn.Module, progress: Progress, budget: Budget | None, num_steps: int, journal: Journal
    ) -> Progress:
        for step in range(len(progress.curve) + 1, num_steps + 1):
            planner = replace(self.planner, model=work, dense=self.planner.model)
            amounts_by = self._amounts_by()
            before = progress.plan.masks(work) if progress.plan is not None else {}
            stats = planner.collect(amounts_by, self.context.data, self.context.loss, before)
            way = self.schedule, step / num_steps, progress.plan
            plan = plan_at(planner, amounts_by, self.allocation, budget, *way, stats=stats)
            earlier = _Earlier.of(work, progress.plan) if self.accept is not None else None
            if may_fall(self.schedule):
                unmask(work, restore=False)  # what comes back does so as zero
            progress_of_training = self._training_progress(step, num_steps)
            context = replace(self.context, progress=progress_of_training, is_last=step == num_steps)
            rows: list[Row] = []
            if self.sequential:
                plan = self._cut_in_turn(planner, plan, progress.plan, context, rows)
            else:
                self._cut(work, plan, stats)
            rows += self.recover(work, replace(context, plan=plan))
            plan = active_plan(work) or plan  # a recovery may move the mask
            history = [{**row, "step": step, "batch": row["step"]} for row in rows]
            row = {
                "step": step,
                "num_steps": num_steps,
                **plan.achieved,
                **(named_numbers(self.evaluate(work)) if self.evaluate else {}),
            }
            if earlier is not None and self.accept is not None and not self.accept(row):
                earlier.restore(work)
                break
            progress = Progress(plan, (*progress.curve, row), (*progress.history, *history))
            journal.save(work, progress)
            if self.on_step is not None:
                self.on_step(row)
        return progress

    def _amounts_by(self) -> Saliency:
        """The criterion that says how much goes of each set: any will do where the allocation does not look at scores,
        and one without statistics spares the memory of those of all sets at once."""
        return self.saliency if not self.sequential or needs_scores(self.allocation) else Random()

    def _cut_in_turn(
        self, planner: Planner, amounts: Plan, before: Plan | None, context: RecoveryContext, rows: list[Row]
    ) -> Plan:
        """Cut one set of units after the other, the first to run first or last, each scored on what those before it
        leave; of each goes what ``amounts`` says. Where the recovery follows each set, ``rows`` takes its rows."""
        gone = {} if before is None or may_fall(self.schedule) else before.removed
        removed = {u.name: gone.get(u.name, torch.zeros(u.num, dtype=torch.bool)) for u in planner.units}
        plan = amounts
        each: Recovery | None = getattr(self.recover, "each", None)
        in_order = sorted(planner.units, key=lambda u: planner.axes.depths.get(u.layer, 0))
        for units in in_order if self.sequential is True else reversed(in_order):
            if units.step:
                raise InputError(f"sets of units go in turn, {units.name!r} go with others; try sequential=False")
            alone = {u.name: "it is another's turn" for u in planner.units if u is not units}
            one = replace(planner, excluded={**planner.excluded, **alone})
            stats = one.collect(self.saliency, self.context.data, self.context.loss)
            candidates = one.candidates(self.saliency, None, None, gone, stats)
            removed[units.name] = candidates.lowest(units, int(amounts.removed[units.name].count_nonzero())).cpu()
            plan = planner.make(removed, requested=amounts.requested, achieved=amounts.achieved)
            self._cut(planner.model, plan, stats)
            if each is not None and removed[units.name].any():
                rows += each(planner.model, replace(context, plan=plan, cut=units))
        return plan

    def _cut(self, work: nn.Module, plan: Plan, stats: Statistics) -> None:
        """Mask what goes; where the criterion makes up for it, change what stays."""
        changed: Mapping[str, Tensor] = {}
        if isinstance(self.saliency, Compensating):
            with torch.no_grad():
                changed = self.saliency.compensate(parameters_of(work), plan.masks(work), stats)
            check_finite(changed, "compensated weights")
        mask(work, plan)
        parameters = parameters_of(work)
        with torch.no_grad():
            for name, values in changed.items():
                parameters[name].copy_(values)
        reapply(work)

    def _training_progress(self, step: int, num_steps: int) -> OnStep | None:
        on_step = self.on_step
        if on_step is None:
            return None
        return lambda row: on_step({"pruning_step": step, "num_pruning_steps": num_steps, **row})


@dataclass(frozen=True, eq=False)
class _Earlier:
    """A model as it was before a step, to go back to."""

    tensors: tuple[Tensor, ...]
    plan: Plan | None

    @classmethod
    def of(cls, work: nn.Module, plan: Plan | None) -> _Earlier:
        return cls(tuple(t.detach().clone() for t in (*work.parameters(), *work.buffers())), plan)

    @torch.no_grad()
    def restore(self, work: nn.Module) -> None:
        unmask(work, restore=False)
        for tensor, value in zip((*work.parameters(), *work.buffers()), self.tensors, strict=True):
            tensor.copy_(value)
        if self.plan is not None:
            mask(work, self.plan)


def plan_at(
    planner: Planner,
    saliency: Saliency,
    allocation: Allocation,
    budget: Budget | None,
    schedule: Schedule | PerLayer,
    progress: float,
    before: Plan | None = None,
    *,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    stats: Statistics | None = None,
) -> Plan:
    """What goes at ``progress`` (0 to 1) of the way to ``budget``; arguments are those of `Planner.plan`.

    What the plan ``before`` removed stays removed, unless the schedule may fall: then all is chosen afresh. With a
    schedule per layer the allocation says what goes of each layer at the whole budget, its schedule how much of that.
    """
    gone = {} if before is None or may_fall(schedule) else dict(before.removed)
    if not isinstance(schedule, PerLayer):
        target = budget and budget.with_removed(schedule(progress, budget.removed))
        return planner.plan(saliency, allocation, target, data=data, loss=loss, gone=gone, stats=stats)
    stats = planner.collect(saliency, data, loss) if stats is None else stats
    candidates = planner.candidates(saliency, data, loss, gone, stats)
    wanted = () if budget is None else (budget.unit,)
    removed, _ = fit(allocation, candidates, budget, lambda r: planner.price(r, candidates.units, wanted))
    final = {units.name: int(removed[units.name].count_nonzero()) / units.num for units in candidates.units}
    fractions = schedule.fractions(progress, final, candidates.units)
    return planner.plan(saliency, _Fractions(fractions), None, gone=gone, stats=stats)


@dataclass(frozen=True)
class _Fractions:
    """The allocation that removes these fractions of the sets of units."""

    by_name: Mapping[str, float]
    needs_budget: ClassVar[bool] = False

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        return {u.name: candidates.lowest(u, share(level * self.by_name[u.name], u.num)) for u in candidates.units}


def _num_steps(steps: int | None, schedule: Schedule | PerLayer, allocation: Allocation, budget: Budget | None) -> int:
    own = getattr(schedule, "num_steps", None)
    if steps is None:
        steps = int(own(budget.removed)) if own is not None and budget is not None else 1
    whole_number(steps, "steps", least=1, attempt="steps=5")
    if budget is None and steps > 1 and not getattr(allocation, "repeats", False):
        raise InputError(f"{steps} steps need a budget to approach; an allocation with its own amounts takes one step")
    return steps


def _loading(model: nn.Module, planner: Planner) -> tuple[str, str]:
    """What a saved model is loaded with, and why."""
    kind, blueprint = type(model).__name__, planner.axes.blueprint
    stock = "from_pretrained" if hasattr(model, "from_pretrained") else "load_state_dict"
    if not planner.structure.is_physical:
        return stock, f"shapes are those that {kind} makes; what is removed is zero"
    if blueprint is None:
        return "topiarist.load", f"sizes may differ between layers of {kind}, which no config describes"
    return stock, f"{blueprint.title} makes these shapes: sizes are tied across layers, and {blueprint.name} says them"


def sound_planner(planner: Planner, example_inputs: Any) -> Planner:
    """The planner without axes that cannot be cut in this model: tried with half of each, before any training.

    Where the smaller model does not run or differs from the masked one, the axes at fault are found by halves and
    excluded, with the reason; the others can be cut together.

    Raises:
        InputError: none is left.
    """
    if not planner.structure.is_physical:
        return planner
    names = [units.name for units in planner.units]
    excluded = _at_fault(planner, example_inputs, names, [])
    if len(excluded) == len(names):
        raise InputError(f"nothing can be cut: {'; '.join(f'{name}: {why}' for name, why in excluded.items())}")
    return replace(planner, excluded=excluded)


def _at_fault(planner: Planner, example_inputs: Any, names: Sequence[str], sound: list[str]) -> dict[str, str]:
    """Which of the named axes cannot be cut together with those that are ``sound``, and why; the others join these."""
    why = _fault(planner, example_inputs, [*sound, *names])
    if why is None:
        sound.extend(names)
        return {}
    if len(names) == 1:
        return {names[0]: why}
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    return {n: reason for half in halves for n, reason in _at_fault(planner, example_inputs, half, sound).items()}


def _fault(planner: Planner, example_inputs: Any, names: Sequence[str]) -> str | None:
    """Why the named axes cannot each lose every second unit, or None where they can."""
    cut = set(names)
    removed = {u.name: _half(u, planner.structure) & (u.name in cut) for u in planner.units}
    try:
        plan = planner.make(removed)
        small = shrink(planner.model, plan, example_inputs)
        checked = verify(planner.model, small, plan, example_inputs)
    except (InputError, ShrinkError) as error:
        return str(error)
    return None if checked.passed else str(checked)


def _half(units: Units, structure: Structure) -> Tensor:
    """Every second unit, as far as the minimum allows; of those that pay only when most are gone, all but that."""
    places = torch.arange(units.num)
    if hasattr(structure, "settled"):
        return places >= units.minimum
    odd = places % 2 == 1
    return odd & (odd.cumsum(0) <= units.num - units.minimum)


def _timing(on_step: OnStep | None) -> Callable[[int, int], None] | None:
    if on_step is None:
        return None
    return lambda done, total: on_step({"timing": done, "num_timings": total})


def _describe(part: object) -> str:
    """A repr without addresses: a function by its module and name."""
    name = getattr(part, "__qualname__", None)
    return f"{getattr(part, '__module__', '')}.{name}" if name is not None else repr(part)

"""From a model to a `Plan`: trace, score, allocate, and price what would go."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from topiarist import allocation as allocations
from topiarist import saliency as saliencies
from topiarist import structure as structures
from topiarist.allocation import Allocation, Candidates
from topiarist.allocation.base import Cost
from topiarist.allocation.least import MinUnits, with_minimum
from topiarist.allocation.sensitivity import GRID, SensitivityTable, analyse
from topiarist.allocation.within import within
from topiarist.asked import patterns, require, require_loss
from topiarist.errors import InputError
from topiarist.graph import Axes, trace
from topiarist.mask.attach import masked
from topiarist.measure.accuracy import evaluate as evaluate_on
from topiarist.measure.executors import Clock, wall_clock
from topiarist.measure.memory import predicted_peak_bytes
from topiarist.measure.prediction import Axis, Bench, Prediction
from topiarist.measure.size import StoredSize
from topiarist.plan import Budget, Plan, Slice, Units
from topiarist.saliency import Saliency
from topiarist.saliency.base import needs, score, told
from topiarist.saliency.finite import check_finite
from topiarist.shrink import shrink
from topiarist.stats import PerParameter, Statistics, Subject, collect, start
from topiarist.stats.statistic import name_of
from topiarist.structure import Structure
from topiarist.structure.base import own_weight, parameters_of, slices
from topiarist.structure.channel import axis_units
from topiarist.structure.entries import zeroed
from topiarist.structure.role import Roles
from topiarist.structure.step import by_axis, ranked
from topiarist.structure.words import word_of

Loss = Callable[[Any, Any], Tensor]
Evaluate = Callable[[nn.Module], Mapping[str, float]]


def plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    structure: str | Structure = "weight",
    saliency: str | Saliency = "l2",
    allocation: str | Mapping[str, float] | Allocation = "global",
    budget: Budget | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    keep: Sequence[str] = (),
    min_units: MinUnits | None = None,
    round_to: int | Literal["auto"] | None = None,
    uniform: str | None = None,
    latency_table: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Decide which units of ``model`` go; the model is left as it is.

    Args:
        model: any module that runs on ``example_inputs`` and can be deep-copied.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        structure: what one unit is: ``"weight"``, ``"channel"``, ``"head"``.
        saliency: the score of a unit, low goes first: a word such as ``"l2"``, ``"taylor"`` or ``"obd"`` (one page each
            in docs/saliency), or a function of `topiarist.saliency.Slices`.
        allocation: how the budget is spread: a word such as ``"uniform"``, ``"global"``, ``"lamp"``, ``"erk"`` or
            ``"knapsack:macs"`` (`topiarist.allocation.words` lists all), a dict of ratios by layer name pattern or
            type, ``"sensitivity"`` (equal loss: prunes one layer at a time and evaluates on ``data``), or an object
            such as ``Threshold(q=0.5)``.
        budget: the target; none where the allocation names its own amounts.
        data: batches ``(inputs, targets)``, for criteria that need gradients and for sensitivity.
        loss: maps outputs and targets to a scalar, for the same.
        keep: fnmatch patterns over module names; what those modules return stays whole.
        min_units: how many units of each set stay at least: a number, a fraction of them (a float), or either by
            layer name pattern or type, as in ``{"features.*": 8, "Linear": 0.1}``; 1 of each axis where not given.
        round_to: leave a multiple of this many channels of every axis that is cut, as hardware likes them; ``"auto"``
            is the multiple of the model's device and dtype. See `topiarist.structure.Channel` and
            `topiarist.structure.rounding`.
        uniform: the name of the model's attribute with the config that its class is built from, ``"config"`` as a rule:
            sizes are tied across layers so that a config describes what is left. None: layers get widths of their own.
        latency_table: for a budget of ``latency_ms``, a file that keeps what was timed, for the next time.
        progress: for the same, called with the number of times taken and of all.

    Raises:
        InputError: an argument cannot be used, a name matches nothing, weights are not finite, or with ``uniform`` the
            model is not what its class builds from its config.
        TraceError: the model does not run on ``example_inputs``.
        BudgetError: the budget cannot be reached; the message names what limits it.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> made = plan(net, torch.zeros(1, 4), structure="channel", budget=Budget(sparsity=0.5))
        >>> made.num_removed, made.achieved["macs"]
        (4, 0.5)
    """
    form = structures.resolve(structure, round_to, model)
    planner = Planner.of(model, example_inputs, form, keep, uniform, min_units)
    criterion = planner.criterion(saliency)
    spread = planner.allocation(allocation, criterion, data, loss)
    planner, budget = planner.timed(budget, latency_table, progress)
    return planner.plan(criterion, spread, budget, data=data, loss=loss)


def sensitivity(
    model: nn.Module,
    example_inputs: Any,
    *,
    evaluate: Evaluate,
    structure: str | Structure = "weight",
    saliency: str | Saliency = "l2",
    grid: Sequence[float] = GRID,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    keep: Sequence[str] = (),
    uniform: str | None = None,
    path: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SensitivityTable:
    """How much the loss rises when each layer is pruned alone, over a grid of ratios, without training.

    The table turns into ratios by the equal-loss rule: ``allocation=topiarist.allocation.Sensitivity(table)``. The
    analysis works on a copy; ``model`` is left as it is.

    Args:
        evaluate: maps a model to ``{"loss": …, "accuracy": …}``; use data that is not the test set.
        grid: the ratios, in (0, 1].
        path: a file that keeps the table cell by cell; an interrupted analysis goes on from it.
        progress: called with the number of cells done and of all cells.

    Raises:
        InputError: an argument cannot be used.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> table = sensitivity(net, torch.zeros(1, 4), grid=[0.5],
        ...                     evaluate=lambda m: {"loss": m(torch.ones(1, 4)).sum().item(), "accuracy": 0.5})
        >>> table.layers
        ('0.weight', '2.weight')
    """
    planner = Planner.of(model, example_inputs, structures.resolve(structure), keep, uniform)
    return planner.analyse(
        planner.criterion(saliency), evaluate, grid, data=data, loss=loss, path=path, progress=progress
    )


@dataclass(frozen=True)
class Planner:
    """A traced model and its units: makes plans, again and again as weights change.

    ``excluded`` maps units that may not go to the reason, ``min_units`` says how many stay at least.
    ``prediction`` is what `timed` found, by ``clock``. ``dense`` is the model of before any cut, where ``model`` has
    zeros by now: what is left is a fraction of it.
    """

    model: nn.Module
    axes: Axes
    structure: Structure
    keep: Sequence[str] = ()
    excluded: Mapping[str, str] = field(default_factory=dict)
    example_inputs: Any = None
    min_units: MinUnits | None = None
    prediction: Prediction | None = None
    clock: Clock = wall_clock
    dense: nn.Module | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example_inputs: Any,
        structure: Structure,
        keep: Sequence[str],
        uniform: str | None,
        min_units: MinUnits | None = None,
    ) -> Planner:
        """Trace the model; arguments are those of `plan`."""
        if uniform is not None and (not structure.is_physical or hasattr(structure, "rewriting")):
            raise InputError(
                f"uniform={uniform!r} ties sizes, and {structure} leaves all as they are; try structure='channel'"
            )
        axes = trace(model, example_inputs, uniform)
        return cls(model, axes, structure, patterns(keep), example_inputs=example_inputs, min_units=min_units)

    def criterion(self, saliency: str | Saliency) -> Saliency:
        """The criterion that is meant, told what it asks of the structure."""
        return told(saliencies.resolve(saliency), getattr(self.structure, "pattern", None))

    @cached_property
    def units(self) -> tuple[Units, ...]:
        """The sets of units that may go."""
        units = tuple(u for u in self.structure.units(self.axes, self.keep) if u.name not in self.excluded)
        return with_minimum(units, self.min_units)

    def plan(
        self,
        saliency: Saliency,
        allocation: Allocation,
        budget: Budget | None,
        *,
        data: Iterable[Any] | None = None,
        loss: Loss | None = None,
        gone: Mapping[str, Tensor] | None = None,
        stats: Statistics | None = None,
    ) -> Plan:
        """Score the units, spread the budget, and say what goes; ``gone`` units stay removed.

        ``stats`` is what `collect` returned; without it that is done here.
        """
        candidates = self.candidates(saliency, data, loss, gone or {}, stats)
        removed, found, notes = self._chosen(candidates, allocation, budget)
        requested = {} if budget is None else {budget.unit: budget.value}
        missed = self.axes.undescribed(by_axis(candidates.units, removed, self.axes))
        if missed is not None:
            raise InputError(f"the config cannot describe what is left: {missed}; try another budget")
        achieved = {**self.price(removed, candidates.units), **found}
        return replace(self.make(removed, candidates.units, requested, achieved), notes=notes)

    def _chosen(
        self, candidates: Candidates, allocation: Allocation, budget: Budget | None
    ) -> tuple[Mapping[str, Tensor], Mapping[str, float], tuple[str, ...]]:
        """What goes, what that costs in the budget's unit, and notes."""
        if budget is None and getattr(self.structure, "names_amount", False):
            return dict(allocation(candidates, 1.0)), {}, ()
        wanted = () if budget is None else (budget.unit,)
        price = partial(self.price, units=candidates.units, wanted=wanted)
        if budget is None or budget.unit != "latency_ms" or self.prediction is None:
            removed, found = allocations.fit(allocation, candidates, budget, price)
            return removed, found, ()

        def solve(ceiling: float) -> tuple[Mapping[str, Tensor], float]:
            removed, found = allocations.fit(allocation, candidates, replace(budget, latency_ms=ceiling), price)
            return removed, found["latency_ms"]

        def furthest() -> tuple[Mapping[str, Tensor], float]:
            removed = allocation(candidates, 1.0)
            return removed, price(removed)["latency_ms"]

        def measure(removed: Mapping[str, Tensor]) -> float:
            return timing.measured(shrink(self.model, self.make(removed, candidates.units)))

        timing = self.prediction
        best, shortfall = within(budget.value, solve, furthest, measure)
        said = f"latency_ms {best.measured:.4g} measured and {best.predicted:.4g} predicted, {timing}"
        return best.removed, {"latency_ms": best.measured}, (said, shortfall) if shortfall else (said,)

    def timed(
        self,
        budget: Budget | None,
        path: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Planner, Budget | None]:
        """For a budget of ``latency_ms``, a planner that can predict it and the budget with what the whole model takes.

        Raises:
            InputError: removing units makes no tensor smaller, or the device or the executor is not there.
        """
        if budget is not None:
            require(budget, Budget, "a budget is a Budget", "budget=Budget(sparsity=0.5), or Budget(macs=0.5)")
        if budget is None or budget.unit != "latency_ms":
            return self, budget
        require_physical(self.structure)
        device = _device(budget.device) or next((p.device for p in self.model.parameters()), torch.device("cpu"))
        bench = Bench.of(self.example_inputs, device, budget.batch, budget.executor, self.clock)
        axes = {u.name: Axis(u.num, u.minimum) for u in self.units}
        prediction = Prediction.of(lambda kept: self._cut(kept).to(device), axes, bench, path, progress)
        if budget.dense_ms is not None:
            prediction = prediction.scaled(budget.dense_ms)
        return replace(self, prediction=prediction), replace(budget, dense_ms=prediction.dense_ms)

    def _cut(self, kept: Mapping[str, int]) -> nn.Module:
        """The model with so many of the units, which of them does not matter; sets not named are whole."""
        return shrink(self.model, self.make(self._first(kept, self.units)))

    @staticmethod
    def _first(kept: Mapping[str, int], units: Sequence[Units]) -> dict[str, Tensor]:
        return {u.name: torch.arange(u.num) >= kept.get(u.name, u.num) for u in units}

    def candidates(
        self,
        saliency: Saliency,
        data: Iterable[Any] | None,
        loss: Loss | None,
        gone: Mapping[str, Tensor],
        stats: Statistics | None = None,
    ) -> Candidates:
        """The units with their scores; ``gone`` maps axes or weights to what an earlier plan removed."""
        parameters = parameters_of(self.model)
        stats = self.collect(saliency, data, loss) if stats is None else stats
        scored_ones = self._parameters_of_units(parameters)
        check_finite(scored_ones, "weights")
        for need, found in stats.items():
            if isinstance(found, PerParameter):
                check_finite({name: v for name, v in found.values.items() if name in scored_ones}, str(need))

        def scored(units: Units) -> Tensor:
            return score(saliency, slices(units, parameters, stats), checked=True)

        own, scores, lost = {u.name: u for u in self.units}, {}, dict(gone)
        for units in self.units:
            if units.step:
                own[units.name], scores[units.name], lost[units.name] = ranked(units, self.axes, scored, gone)
            else:
                scores[units.name] = scored(units)
        lost = {name: lost[name] for name in own if name in lost}
        return Candidates(
            tuple(own.values()),
            scores,
            lambda name: own_weight(own[name], parameters),
            lost,
            self._protected(tuple(own.values()), scores, lost),
            Roles(self.axes, {u.name: u for u in self.units}, parameters),
            {
                **{unit: self._cost(unit, tuple(own.values())) for unit in ("params", "macs", "bytes")},
                **({} if self.prediction is None else {"latency_ms": self.prediction}),
            },
            bool(getattr(saliency, "is_comparable", False)),
        )

    def _protected(
        self, units: Sequence[Units], scores: Mapping[str, Tensor], gone: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Which units the structure holds back, whatever the budget."""
        protected = getattr(self.structure, "protected", None)
        return {} if protected is None else protected(self.axes, units, scores, gone)

    def _settled(self, removed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The removal without what the structure knows not to pay."""
        settled = getattr(self.structure, "settled", None)
        return removed if settled is None else settled(self.axes, self.units, removed)

    def _cost(self, unit: str, units: Sequence[Units]) -> Cost:
        """What the model costs in ``unit`` with given numbers of the units, which of them does not matter."""

        def cost(kept: Mapping[str, int]) -> float:
            return self.price(self._first(kept, units), units, (unit,))[unit] * self._whole[unit]

        return cost

    def collect(
        self,
        saliency: Saliency,
        data: Iterable[Any] | None,
        loss: Loss | None,
        removed: Mapping[str, Tensor] | None = None,
    ) -> Statistics:
        """What the criterion needs beyond weights, each collected once and all in the same pass over ``data``.

        ``removed`` marks entries of parameters that an earlier cut has removed.

        Raises:
            InputError: the data or the loss that it takes is not there.
        """
        subject = Subject(self.model, self._scored_units(), self.axes, self.example_inputs, removed or {})
        if loss is not None:
            require_loss(loss)
        stats = start(needs(saliency), subject)
        for need, statistic in stats.items():
            if statistic.reads == "loss" and (data is None or loss is None):
                raise InputError(
                    f"{saliency} needs {name_of(need)}: pass data=batches of (inputs, targets) and loss=function"
                )
            if statistic.reads == "inputs" and data is None:
                raise InputError(f"{saliency} needs {name_of(need)}: pass data=batches of inputs")
        collect(stats.values(), subject, data, loss)
        return stats

    def _scored_units(self) -> tuple[Units, ...]:
        """What criteria are asked about: the units, or the indices of each axis where a unit takes several."""
        axes = dict.fromkeys(name for units in self.units for name, _ in units.step)
        return (*(u for u in self.units if not u.step), *(axis_units(self.axes[name]) for name in axes))

    def _parameters_of_units(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        members = [m for units in self._scored_units() for m in units.members]
        return {m.tensor: parameters[m.tensor] for m in members if m.tensor in parameters}

    def make(
        self,
        removed: Mapping[str, Tensor],
        units: Sequence[Units] | None = None,
        requested: Mapping[str, float] | None = None,
        achieved: Mapping[str, float] | None = None,
    ) -> Plan:
        """The plan that removes exactly these units, ``units`` as `candidates` ranked them."""
        removed = by_axis(self.units if units is None else units, self._settled(removed), self.axes)
        name = word_of(self.structure)
        if not self.structure.is_physical:
            entries = {} if name == "weight" else zeroed(self.units, removed)
            return Plan(name, removed, requested=requested or {}, achieved=achieved or {}, zeroed=entries)
        rewriting = getattr(self.structure, "rewriting", None)
        if rewriting is not None:
            fields = rewriting(self.axes, self.units, removed, parameters_of(self.model))
            return Plan(name, requested=requested or {}, achieved=achieved or {}, **{"removed": removed, **fields})
        attributes, broken = self.axes.attributes(removed)
        attributes = {**attributes, **self.axes.renumbered(removed)}
        if broken:
            places = ", ".join(sorted({c.where for c in broken}))
            raise InputError(f"the plan asks for sizes that the model's code cannot take together, at {places}")
        inexact = {n: why for n, gone in removed.items() if gone.any() and (why := self.axes.why_inexact(n))}
        cuts: dict[str, tuple[Slice, ...]] = self.axes.slices(removed)
        lists = self.axes.shortened(removed)
        rescaled = self.axes.rescaled(removed)
        return Plan(
            name, removed, cuts, attributes, inexact, requested or {}, achieved or {},
            shortened=lists, rescaled=rescaled,
        )  # fmt: skip

    def analyse(
        self,
        saliency: Saliency,
        evaluate: Evaluate,
        grid: Sequence[float] = GRID,
        *,
        data: Iterable[Any] | None = None,
        loss: Loss | None = None,
        path: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> SensitivityTable:
        """The sensitivity table of these units, made on a copy of the model."""
        work = copy.deepcopy(self.model)
        candidates = self.candidates(saliency, data, loss, {})
        return analyse(
            work,
            candidates,
            lambda removed: masked(work, self.make(removed, candidates.units)),
            evaluate,
            grid,
            path,
            progress,
        )

    def allocation(
        self,
        allocation: str | Mapping[str, float] | Allocation,
        saliency: Saliency,
        data: Iterable[Any] | None = None,
        loss: Loss | None = None,
        evaluate: Evaluate | None = None,
    ) -> Allocation:
        """The allocation that is meant; for the words ``"sensitivity"`` and ``"tolerance"`` the table is made first,
        from ``evaluate`` or from the loss over ``data``."""
        if not allocations.needs_table(allocation):
            return allocations.resolve(allocation)
        if evaluate is None:
            if data is None or loss is None:
                raise InputError(f"allocation {allocation!r} evaluates each layer: pass data=batches and loss=function")
            evaluate = partial(evaluate_on, data=data, loss=loss)
        return allocations.resolve(allocation, self.analyse(saliency, evaluate, data=data, loss=loss))

    # ------------------------------------------------------------------ prices

    def price(
        self,
        removed: Mapping[str, Tensor],
        units: Sequence[Units] | None = None,
        wanted: Sequence[str] = ("sparsity", "compression", "macs", "params", "bytes"),
    ) -> dict[str, float]:
        """What a removal leaves, in every unit of `Budget` that is ``wanted``: exact counts of the model that results;
        of ``latency_ms``, a prediction.

        Where entries are zeroed, ``params`` and ``compression`` count what is not removed, ``macs`` the products
        with it (Blalock et al. 2020), ``bytes`` what `topiarist.save` stores of tensors; for structures that shrink,
        ``bytes`` are those of parameters and buffers.
        """
        found: dict[str, float] = {}
        removed = self._settled(removed)
        left: Mapping[str, Callable[[], float]] = {}
        if {*wanted} - {"sparsity", "latency_ms"}:
            by_name = by_axis(self.units if units is None else units, removed, self.axes)
            left = self._physical(by_name) if self.structure.is_physical else self._sparse(by_name)
        for unit in wanted:
            if unit == "sparsity":
                gone = sum(int(r.count_nonzero()) for r in removed.values())
                found[unit] = gone / sum(each.num for each in self.units)
            elif unit == "latency_ms" and self.prediction is not None:
                kept = {n: r.numel() - int(r.count_nonzero()) for n, r in removed.items()}
                found[unit] = self.prediction(kept)
            elif unit == "compression":
                params = left["params"]()
                found[unit] = self._whole["params"] / params if params else float("inf")
            else:
                whole = self._whole_peak if unit == "peak_memory" else self._whole[unit]
                found[unit] = left[unit]() / whole if whole else 1.0
        return found

    @cached_property
    def _whole(self) -> dict[str, float]:
        left = self._physical({}) if self.structure.is_physical else self._sparse({})
        found = {unit: count() for unit, count in left.items() if unit != "peak_memory"}
        if self.dense is not None and not self.structure.is_physical:
            found["bytes"] = StoredSize(self.dense).whole
        return found

    @cached_property
    def _whole_peak(self) -> int:
        return predicted_peak_bytes(self.model, self.example_inputs)

    def _physical(self, removed: Mapping[str, Tensor]) -> dict[str, Callable[[], float]]:
        """What counts parameters, multiply–accumulates and bytes after a cut."""
        remaining = getattr(self.structure, "remaining", None)
        if removed and remaining is not None:
            axes, sizes = remaining(self.axes, self.units, removed), {}
        else:
            axes, sizes = self.axes.left(removed), self.axes.sizes(removed)
        return {
            "params": lambda: axes.num_params(sizes),
            "macs": lambda: axes.num_macs(sizes),
            "bytes": lambda: axes.num_bytes(sizes),
            "peak_memory": lambda: self._peak(removed),
        }

    def _peak(self, removed: Mapping[str, Tensor]) -> float:
        """The peak of the smaller model's activations, from its shapes alone."""
        return predicted_peak_bytes(shrink(self.model, self.make(removed, ())), self.example_inputs)

    def _sparse(self, removed: Mapping[str, Tensor]) -> dict[str, Callable[[], float]]:
        """The same of what is not zero after entries are gone."""
        entries = zeroed(self.units, removed)
        less = {name: int(gone.count_nonzero()) for name, gone in entries.items()}
        products = self._macs_by_tensor
        return {
            "params": lambda: self.axes.num_params() - sum(less.values()),
            "macs": lambda: (
                self.axes.num_macs() - sum(products.get(n, 0) * k / entries[n].numel() for n, k in less.items())
            ),
            "bytes": lambda: self._stored.with_removed(entries),
            "peak_memory": lambda: self._whole_peak,
        }

    @cached_property
    def _macs_by_tensor(self) -> dict[str, float]:
        return self.axes.macs_by_tensor()

    @cached_property
    def _stored(self) -> StoredSize:
        return StoredSize(self.model)


def _device(name: str | None) -> torch.device | None:
    """The device of this name, tried."""
    if name is None:
        return None
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used ({error}); try cpu") from error


def require_physical(structure: Structure) -> None:
    """Refuse a budget of latency where removing units makes no tensor smaller.

    Raises:
        InputError: it does not.
    """
    if not structure.is_physical:
        raise InputError(
            f"{structure} leaves tensors as large as they are, and zeros take as long as other numbers; "
            "for latency_ms try structure='channel'"
        )

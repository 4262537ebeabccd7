"""Reconstruction: every product's weights refitted by least squares to what the dense model computes, in order.

The inputs are those of the pruned model as mended so far, the targets those of the dense model (asymmetric: He, Zhang,
Sun 2017, section 3.2), so that errors do not pile up. A product that ends in a sum takes over what the other summand
lacks, and one that ends in a relu need not fit what the relu cuts off. No labels and no gradients.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from topiarist.errors import InputError
from topiarist.mask.attach import reapply
from topiarist.plan import Plan
from topiarist.recover.base import RecoveryContext
from topiarist.recover.least_squares import Rows, refit
from topiarist.recover.lockstep import Runner, runners
from topiarist.recover.train import OnStep, Row, device_of
from topiarist.recover.wiring import Site, affine, wiring
from topiarist.stats.collect import inputs_of

_MOST_BATCHES = 64  # each is a thread
_MOST_NUMBERS = 2**26  # in the rows that one fit works on
_FEWEST_ROWS = 32768


@dataclass(frozen=True)
class Reconstruct:
    """Refit the weights of every product behind the first cut to the dense model's, over ``max_samples`` samples.

    ``ridge`` is λ over the mean diagonal of the Gram matrix (see `topiarist.recover.least_squares`); None chooses it
    for each weight by rows held out. A row is returned for each weight: ``loss`` is the relative square error
    afterwards, ``before`` the one it had.

    Raises:
        InputError: no data, or the dense model is not known.
    """

    max_samples: int = 1024
    ridge: float | None = None

    def __call__(self, model: nn.Module, context: RecoveryContext) -> list[Row]:
        """Reconstruct ``model`` in place."""
        data, original, plan = context.compared(self)
        return reconstruct(
            model, original, data, plan, max_samples=self.max_samples, ridge=self.ridge, progress=context.progress
        )


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    original: nn.Module,
    data: Iterable[Any],
    plan: Plan | None = None,
    *,
    max_samples: int = 1024,
    ridge: float | None = None,
    only: Collection[str] | None = None,
    progress: OnStep | None = None,
) -> list[Row]:
    """Refit ``model``, in place, to ``original``, the same network before it was cut by ``plan``.

    Batches are ``(inputs, targets)`` or inputs alone. What the plan removes stays zero. A weight keeps its values where
    refitting does not lower the error on rows held out (the last quarter of each batch), where it takes part more than
    once, or where no product with it is seen (recurrent layers, weights that are computed). ``only`` are the names of
    the weights that may be refitted; all by default.

    Returns:
        A row per weight: ``step``, ``loss`` (relative square error after), ``before``, and ``lr``, which is 0.

    Raises:
        InputError: there are no batches.

    Example:
        >>> dense = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
        >>> for parameter in dense.parameters():
        ...     _ = parameter.data.fill_(1.0)
        >>> import copy; cut = copy.deepcopy(dense)
        >>> cut[2].weight.data[0, 1] = 0.0  # the second neuron was a copy of the first
        >>> plan = Plan("weight", {"2.weight": torch.tensor([False, True])})
        >>> rows = reconstruct(cut, dense, [torch.rand(8, 2).double()], plan)
        >>> cut[2].weight.data.round(decimals=6)
        tensor([[2., 0.]], dtype=torch.float64)
    """
    batches = list(first_batches(data, max_samples, device_of(model)))
    if not batches:
        raise InputError("the data yielded no batch; is the loader empty, or an iterator that is used up?")
    sites = wiring(original, batches[0])
    masks = {} if plan is None else plan.masks(model)
    turns = [(n, site) for n, site in enumerate(sites) if only is None or site.weight in only]
    seen = {number for _, site in turns for number in (site.event, site.end, site.partner) if number is not None}
    rows: list[Row] = []
    with runners(original, batches, seen) as dense, runners(model, batches, seen) as pruned:
        for number, site in turns:
            job = _Refit(site, model, original, masks.get(site.weight), slot_of(site, sites), ridge)
            errors = job.run([*zip(pruned, dense, strict=True)])
            reapply(model)
            later = {n for at, other in turns if at > number for n in (other.event, other.end, other.partner)}
            for runner in (*dense, *pruned):
                runner.kept = {n: value for n, value in runner.kept.items() if n in later}
            if errors is not None:
                rows.append({"step": len(rows), "loss": errors[1], "before": errors[0], "lr": 0.0})
                if progress is not None:
                    progress({**rows[-1], "step": number, "num_steps": len(sites)})
    return rows


def first_batches(data: Iterable[Any], max_samples: int, device: torch.device) -> Iterator[Any]:
    """The inputs of so many samples: the length of the first tensor is the number of a batch."""
    if hasattr(data, "set_epoch"):
        data.set_epoch(0)  # the same batches each time
    num = 0
    for batch in islice(data, _MOST_BATCHES):
        if num >= max_samples:
            return
        inputs = tree_map_only(Tensor, lambda t: t.to(device), inputs_of(batch))
        num += next((len(t) for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.dim()), 1)
        yield inputs


def slot_of(site: Site, sites: list[Site]) -> int | None:
    """Which of the steps takes a constant: the first that adds or subtracts a tensor that no other product has."""
    for place, step in enumerate(site.steps):
        if step.taker is not None:
            holders = [other for other in sites for s in other.steps if step.taker in (s.shift, s.mean)]
            return place if len(holders) == 1 else None
    return None


@dataclass(frozen=True, eq=False)
class _Refit:
    """The refit of one weight; ``slot`` is the step that takes a constant, if one does."""

    site: Site
    model: nn.Module
    original: nn.Module
    removed: Tensor | None
    slot: int | None
    ridge: float | None

    def run(self, pairs: list[tuple[Runner, Runner]]) -> tuple[float, float] | None:
        """Relative square errors before and after; None where nothing was mended."""
        rows, held_out = self._collect(pairs)
        if rows is None:
            return None
        parameter = tensors_of(self.model)[self.site.weight]
        matrix = self.site.matrix(parameter.double())
        free = self.site.matrix(torch.ones_like(parameter, dtype=torch.bool) if self.removed is None else ~self.removed)
        groups = [self._group(*group, held_out) for group in zip(rows, matrix, free, strict=True)]
        before, after, size = (sum(float(group[i]) for group in groups) for i in (2, 3, 4))
        if not after < before:
            return None
        parameter.copy_(self.site.unmatrix(torch.stack([group[0] for group in groups]), parameter.shape))
        if self.slot is not None:
            add_constant(self.site, self.slot, torch.cat([group[1] for group in groups]), self.model)
        return before / size, after / size

    def _collect(self, pairs: list[tuple[Runner, Runner]]) -> tuple[list[Rows] | None, Tensor]:
        """Rows of each group from all batches, and which of them are held out."""
        site, parts, held = self.site, [], []
        for number, (pruned, dense) in enumerate(pairs):
            dense.advance(site.end, after=True)
            pruned.advance(site.event)
            if pruned.call is None or not {site.event, site.end} <= dense.kept.keys():
                continue  # this batch takes another way through the model
            use, target = site.use(pruned.call[1]), dense.kept[site.end]
            where = self._where(target, number, len(pairs))
            if not self._is_affine(dense, where):
                continue
            targets = site.outputs(target, where)
            partner = torch.zeros_like(targets)
            if site.partner is not None:
                partner = site.outputs(pruned.kept[site.partner], where)
            parts.append((use.rows(where), targets, partner))
            held.append(torch.arange(len(where), device=target.device) >= max(1, len(where) * 3 // 4))
        if not parts:
            return None, torch.zeros(0)
        inputs, targets, offset = (torch.cat([part[i] for part in parts]) for i in range(3))
        scale, shift = self._affine(self.model, targets)
        return [
            Rows(inputs[:, g], targets[:, g], offset[:, g].double() + shift[g], scale[g], site.is_relu)
            for g in range(targets.shape[1])
        ], torch.cat(held)

    def _affine(self, model: nn.Module, rows: Tensor, *, own: bool = True) -> tuple[Tensor, Tensor]:
        """Scale and shift, as (groups, outputs of one), of what follows the product in ``model``."""
        num_groups, num_out = rows.shape[1:]
        steps = self.site.steps if own else self.site.steps[self.site.has_bias :]
        scale, shift = affine(steps, num_groups * num_out, tensors_of(model))
        return scale.view(num_groups, num_out), shift.view(num_groups, num_out)

    def _is_affine(self, dense: Runner, where: Tensor) -> bool:
        """Whether the dense model's target is what its product becomes by the steps and the partner."""
        site = self.site
        product = site.outputs(dense.kept[site.event], where)
        scale, shift = self._affine(self.original, product, own=False)
        made = product * scale + shift
        if site.partner is not None:
            made = made + site.outputs(dense.kept[site.partner], where)
        wanted = site.outputs(dense.kept[site.end], where)
        return float((made - wanted).abs().max()) <= 1e-2 * float(wanted.abs().max())

    def _where(self, target: Tensor, number: int, num_batches: int) -> Tensor:
        """Which rows of a batch take part: all, or so many at random."""
        num_features = self.site.matrix(tensors_of(self.model)[self.site.weight]).shape[-1]
        num_rows = target.shape[1] if self.site.num_out == 0 else target.numel() // self.site.num_out
        most = min(max(_FEWEST_ROWS, 32 * num_features), _MOST_NUMBERS // num_features) // num_batches + 1
        generator = torch.Generator().manual_seed(number)
        return torch.randperm(num_rows, generator=generator)[:most].sort().values.to(target.device)

    def _group(
        self, rows: Rows, prior: Tensor, free: Tensor, held_out: Tensor
    ) -> tuple[Tensor, Tensor, float, float, float]:
        """Weights and biases of one group, the square errors before and after, and the square of the targets."""
        weight, bias = prior.clone(), torch.zeros_like(prior[:, 0])
        live = free.any(1) & (rows.scale != 0)
        before = rows.error(weight, bias)[live].sum()
        middle = rows.targets.double() - rows.targets.double().mean(0)
        size = float(middle.square().sum().clamp(min=1e-300))
        if before <= 1e-10 * size:
            return weight, bias, 0.0, 0.0, size
        patterns, which = torch.unique(free, dim=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            outputs = (live & (which == number)).nonzero().flatten()
            if len(outputs):
                some = rows.part(slice(None), outputs)
                weight[outputs], bias[outputs] = refit(
                    some, held_out, pattern, prior[outputs], has_bias=self.slot is not None, ridge=self.ridge
                )
        return weight, bias, float(before), float(rows.error(weight, bias)[live].sum()), size


def add_constant(site: Site, slot: int, bias: Tensor, model: nn.Module, onto: nn.Module | None = None) -> None:
    """Add ``bias``, (outputs,), to the product of ``site`` in ``model``, by the tensor that step number ``slot`` has.

    The new value is that tensor's own, or the one it has in ``onto``, and the constant.
    """
    tensors, step = tensors_of(model), site.steps[slot]
    if step.taker is None:
        raise ValueError(f"step {slot} of {site.weight} takes no constant")
    scale, _ = affine(site.steps[:slot], len(bias), tensors)
    held, base = tensors[step.taker], tensors_of(onto or model)[step.taker]
    change = (scale * bias).to(held).view(held.shape)
    held.copy_(base + change if step.mean is None else base - change)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones by each of their names."""
    held = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in held}

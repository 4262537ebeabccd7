"""Experts in stacks of weights, one by one or over sorted tokens: what is left is the function without them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from topiarist import Budget
from topiarist.errors import BudgetError, InputError
from topiarist.graph import trace
from topiarist.plan import Slice
from topiarist.testing.experts import gap
from topiarist.testing.invariants import count_macs, nothing_left_behind

NUM, WIDTH, INNER = 6, 8, 12


class Stacks(nn.Module):
    """A router, two stacks of weights with biases, and a layer behind; ``logits`` changes what the router returns."""

    def __init__(self, top=2):
        super().__init__()
        self.top, self.num = top, NUM
        self.router = nn.Linear(WIDTH, NUM)
        self.up, self.down = nn.Parameter(torch.randn(NUM, INNER, WIDTH)), nn.Parameter(torch.randn(NUM, WIDTH, INNER))
        self.bias = nn.Parameter(torch.randn(NUM, WIDTH))
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, x, logits=lambda z: z):
        weights, chosen = torch.softmax(logits(self.router(x)), -1).topk(self.top, -1)
        return self.last(self.mixed(x, weights, chosen))

    def each(self, rows, i):
        return F.linear(F.silu(F.linear(rows, self.up[i])), self.down[i], self.bias[i])


class Hit(Stacks):
    """A loop over the experts that were hit, one more class than there are, as in transformers 5."""

    def mixed(self, x, weights, chosen):
        total = torch.zeros_like(x)
        mask = F.one_hot(chosen, num_classes=self.num + 1).permute(2, 1, 0)
        for found in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            i = found[0]
            if i == self.num:
                continue
            slot, token = torch.where(mask[i])
            total.index_add_(0, token, self.each(x[token], i) * weights[token, slot, None])
        return total


class HitAsNumbers(Stacks):
    """The same with numbers in Python, and stacks that are views of flat weights, as in DBRX."""

    def __init__(self, top=2):
        super().__init__(top)
        self.inner = INNER
        self.up = nn.Parameter(torch.randn(NUM * INNER, WIDTH))

    def mixed(self, x, weights, chosen):
        total = torch.zeros_like(x)
        mask = F.one_hot(chosen, num_classes=self.num + 1).permute(2, 1, 0)
        for i in (mask.sum((1, 2)) > 0).nonzero().flatten():
            i = i.item()
            slot, token = torch.where(mask[i])
            up = self.up.view(-1, self.inner, WIDTH)[i]
            rows = F.gelu(x[token] @ up.T) @ self.down[i].T + self.bias[i]
            total.index_add_(0, token, rows * weights[token, slot, None])
        return total


class Ranged(Stacks):
    """A loop over all, by their numbers."""

    def mixed(self, x, weights, chosen):
        total = torch.zeros_like(x)
        for i in range(self.num):
            token, slot = torch.where(chosen == i)
            total.index_add_(0, token, self.each(x[token], i) * weights[token, slot, None])
        return total


class Sorted(Stacks):
    """Tokens are sorted by what they chose, all experts are one product, and the order is put back."""

    def ends(self, order):
        return torch.histc(order.float(), bins=self.num, min=0, max=self.num - 1).cumsum(0, dtype=torch.int32)

    def mixed(self, x, weights, chosen):
        order, moved = torch.sort(chosen.reshape(-1))
        rows, ends = x[moved // self.top], self.ends(order)
        rows = F.grouped_mm(F.silu(F.grouped_mm(rows, self.up.mT, offs=ends)), self.down.mT, offs=ends)
        rows = (rows + self.bias[order]) * weights.reshape(-1)[moved, None]
        back = torch.empty_like(moved)
        back[moved] = torch.arange(len(moved))
        return rows[back].view(len(x), self.top, -1).sum(1)


class SortedAndCounted(Sorted):
    def ends(self, order):
        return torch.bincount(order, minlength=self.num).cumsum(0).int()


NETS = [Hit, HitAsNumbers, Ranged, Sorted, SortedAndCounted]
X = torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(0))


def made(make, *args):
    torch.manual_seed(0)
    return make(*args)


def experts(axes):
    return [axis for axis in axes.axes if axis.is_expert]


@pytest.mark.parametrize("make", NETS)
def test_what_is_left_is_the_network_whose_router_never_chooses_the_others(make):
    model = made(make)
    with nothing_left_behind(model, X):
        result = topiarist.prune(model, X, structure="expert", saliency="l2", budget=Budget(sparsity=0.5))
    ((name, gone),) = result.plan.removed.items()
    small = result.model
    assert int(gone.sum()) == NUM // 2
    assert (small.num, len(small.down), len(small.bias), small.router.out_features) == (3, 3, 3, 3)
    assert result.verification.passed
    assert result.verification.unchosen == (name,)
    fresh = torch.randn(50, WIDTH)
    tolerance = 1e-9
    if not isinstance(model, Sorted):  # torch multiplies in groups in single precision only
        small, model, fresh = small.double(), model.double(), fresh.double()
    else:
        tolerance = 1e-4  # sums of 12 products of numbers around 10, in single precision
    assert gap(small, model, gone, fresh) <= tolerance
    assert gap(small, model, gone.roll(1), fresh) > 1e-2


@pytest.mark.parametrize("make", NETS)
def test_the_bill_is_exact(make):
    model = made(make)
    result = topiarist.prune(model, X, structure="expert", budget=Budget(sparsity=0.5))
    params = [sum(p.numel() for p in net.parameters()) for net in (model, result.model)]
    assert result.plan.achieved["params"] == params[1] / params[0]
    macs = [count_macs(net, X) for net in (model, result.model)]
    assert trace(model, X).num_macs() == pytest.approx(macs[0], rel=1e-12)
    assert result.plan.achieved["macs"] == pytest.approx(macs[1] / macs[0], rel=1e-12)


@pytest.mark.parametrize("make", NETS)
def test_a_stack_off_by_one_is_caught(make):
    model = made(make)
    plan = topiarist.plan(model, X, structure="expert", budget=Budget(sparsity=0.5))
    assert topiarist.verify(model, topiarist.shrink(model, plan), plan, X).passed
    shifted = tuple(Slice(s.dim, s.removed.roll(1)) for s in plan.slices["down"])
    sabotaged = replace(plan, slices={**plan.slices, "down": shifted})
    assert not topiarist.verify(model, topiarist.shrink(model, sabotaged), sabotaged, X).passed


@pytest.mark.parametrize("make", [Hit, HitAsNumbers, Sorted])
def test_experts_that_no_example_hits_are_seen_as_well(make):
    model = made(make, 1)
    (axis,) = experts(trace(model, X[:1]))
    assert (axis.size, axis.pins, axis.minimum) == (NUM, (), 1)
    plan = topiarist.plan(model, X[:1], structure="expert", budget=Budget(sparsity=0.5))
    (gone,) = plan.removed.values()
    assert gap(topiarist.shrink(model, plan), model, gone, torch.randn(50, WIDTH)) <= 1e-4


@pytest.mark.parametrize("make", NETS)
def test_as_many_stay_as_are_chosen(make):
    with pytest.raises(BudgetError, match="keeps 2"):
        topiarist.plan(made(make), X, structure="expert", budget=Budget(params=0.01))


@pytest.mark.parametrize("make", NETS)
def test_widths_go_beside(make):
    model = made(make)
    first = topiarist.prune(model, X, structure="expert", budget=Budget(sparsity=0.5))
    assert topiarist.prune(first.model, X, structure="expert", budget=Budget(sparsity=0.3)).verification.passed
    if make is not HitAsNumbers:  # of which the width is a part of a flat dimension
        narrow = topiarist.prune(first.model, X, structure="channel", round_to=4, budget=Budget(sparsity=0.3))
        assert narrow.verification.passed


# --------------------------------------------------------------------------------------------------- what is refused


class NextOne(Hit):
    """Expert i deals with the tokens of another index."""

    def each(self, rows, i):
        return super().each(rows, (i + 1) % NUM)


class Crossed(Ranged):
    """The second product takes the weights of the next."""

    def each(self, rows, i):
        return F.linear(F.silu(F.linear(rows, self.up[i])), self.down[(i + 1) % NUM], self.bias[i])


class Always(Ranged):
    """The first expert works for every token as well."""

    def mixed(self, x, weights, chosen):
        return super().mixed(x, weights, chosen) + F.linear(x, self.up[0])[:, :WIDTH]


class Few(Ranged):
    """Not all of the stack is used one by one."""

    def mixed(self, x, weights, chosen):
        total = torch.zeros_like(x)
        for i in range(NUM - 1):
            token, slot = torch.where(chosen == i)
            total.index_add_(0, token, self.each(x[token], i) * weights[token, slot, None])
        return total


class Numbered(Hit):
    """The numbers of those that were hit count as numbers."""

    def mixed(self, x, weights, chosen):
        hits = (F.one_hot(chosen, num_classes=self.num).sum((0, 1)) > 0).nonzero()
        return super().mixed(x, weights, chosen) + hits.sum()


class BiasForAll(Ranged):
    """A masked product, and a bias that every token has, whoever it chose."""

    def mixed(self, x, weights, chosen):
        total = torch.zeros_like(x)
        for i in range(self.num):
            mine = (weights * (chosen == i)).sum(-1, keepdim=True)
            total = total + F.linear(F.linear(x * mine, self.up[i]), self.down[i]) + self.bias[i]
        return total


class Elsewhere(Sorted):
    """Groups end somewhere else."""

    def ends(self, order):
        return super().ends(order).flip(0)


class OfThem(Sorted):
    """What is counted are no indices any more."""

    def ends(self, order):
        return super().ends((order + 1) % NUM)


@pytest.mark.parametrize("make", [NextOne, Crossed, Always, Few, Numbered, Elsewhere, OfThem])
def test_other_uses_of_the_choice_pin_the_experts(make):
    model = made(make)
    with pytest.raises(InputError, match="no expert that may go"):
        topiarist.plan(model, X, structure="expert", budget=Budget(sparsity=0.5))


def test_a_bias_for_all_is_refused():
    with pytest.raises(InputError, match=r"DIFFER|no expert"):
        topiarist.prune(made(BiasForAll), X, structure="expert", budget=Budget(sparsity=0.5))

"""Experts in module lists: the entry, its row of the router and the count go together, and the rest is the function
without them."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from topiarist import Budget
from topiarist.errors import BudgetError, FormatError, InputError
from topiarist.graph import trace
from topiarist.plan import Plan, Slice
from topiarist.testing.experts import gap
from topiarist.testing.invariants import count_macs, nothing_left_behind

NUM, WIDTH = 6, 5


def expert():
    return nn.Sequential(nn.Linear(WIDTH, 7), nn.ReLU(), nn.Linear(7, WIDTH))


class Mixture(nn.Module):
    """A router, a module list of experts, and a layer behind; ``logits`` changes what the router returns."""

    def __init__(self, top=2, num=NUM):
        super().__init__()
        self.top, self.num = top, num
        self.router = nn.Linear(WIDTH, num)
        self.experts = nn.ModuleList(expert() for _ in range(num))
        self.last = nn.Linear(WIDTH, 3)

    def routed(self, x, logits):
        return torch.softmax(logits(self.router(x)), -1).topk(self.top, -1)

    def forward(self, x, logits=lambda z: z):
        return self.last(self.mixed(x, *self.routed(x, logits)))


class DenseMask(Mixture):
    def mixed(self, x, weights, chosen):
        total = torch.zeros_like(x)
        for i, each in enumerate(self.experts):
            total = total + each(x) * (weights * (chosen == i)).sum(-1, keepdim=True)
        return total


class DenseMaskAfter(Mixture):
    """All experts run first, the choice is looked at later; the count is a number of the module."""

    def mixed(self, x, weights, chosen):
        outputs = [each(x) for each in self.experts]
        total = torch.zeros_like(x)
        for i in range(self.num):
            total += torch.where((chosen == i).any(-1, keepdim=True), outputs[i], torch.zeros_like(x))
        return total


class Scattered(Mixture):
    """The weights of the chosen stand among zeros, and experts count by theirs."""

    def mixed(self, x, weights, chosen):
        every = torch.zeros(len(x), self.num, dtype=x.dtype, device=x.device).scatter_(1, chosen, weights)
        return sum(every[:, i, None] * each(x) for i, each in enumerate(self.experts))


class Where(Mixture):
    def mixed(self, x, weights, chosen):
        total = torch.zeros_like(x)
        for i, each in enumerate(self.experts):
            token, slot = torch.where(chosen == i)
            total.index_add_(0, token, each(x[token]) * weights[token, slot, None])
        return total


class WhereIfAny(Mixture):
    """Experts that nobody chose do not run."""

    def mixed(self, x, weights, chosen):
        total = torch.zeros_like(x)
        for i in range(self.num):
            mask = chosen == i
            if not mask.any():
                continue
            token, slot = mask.nonzero(as_tuple=True)
            if token.numel() > 0:
                total[token] += self.experts[i](x[token]) * weights[token, slot].unsqueeze(-1)
        return total


class MaskedRows(Mixture):
    """Masks as indices; a tensor made on the CPU by name, so that the trace has devices too."""

    def mixed(self, x, weights, chosen):
        total = torch.zeros(x.shape, dtype=x.dtype, device="cpu")
        for i, each in enumerate(self.experts):
            mine = (chosen == i).any(-1)
            if mine.any():
                weight = (weights * (chosen == i)).sum(-1)
                total[mine] += weight[mine, None] * each(x[mine])
        return total


class OneHot(Mixture):
    """As in the first releases of Mixtral."""

    def mixed(self, x, weights, chosen):
        total = torch.zeros_like(x)
        masks = F.one_hot(chosen, num_classes=self.num).permute(2, 1, 0)
        for i in range(self.num):
            slot, token = torch.where(masks[i])
            rows = x[None, token].reshape(-1, x.shape[-1])
            total.index_add_(0, token, (self.experts[i](rows) * weights[token, slot, None]).to(x.dtype))
        return total


class TopOne(Mixture):
    """An argmax, tokens of two dimensions, and experts whose halves stand in two lists."""

    def __init__(self, top=1):
        super().__init__(1)
        self.down = nn.ModuleList(each[2] for each in self.experts)
        self.experts = nn.ModuleList(each[0] for each in self.experts)

    def routed(self, x, logits):
        return torch.softmax(logits(self.router(x)), -1).max(-1)

    def mixed(self, x, weights, chosen):
        total = torch.zeros_like(x)
        for i, (up, down) in enumerate(zip(self.experts, self.down, strict=True)):
            token = (chosen == i).nonzero().squeeze(-1)
            total = total.index_add(0, token, weights[token, None] * down(F.gelu(up(x[token]))))
        return total


class Numbered(nn.Module):
    def __init__(self, place):
        super().__init__()
        self.place, self.inner = place, expert()

    def forward(self, x):
        return self.inner(x)


class KnowTheirPlaces(Mixture):
    """Experts that hold their own numbers, of which the loop makes use outside of torch."""

    def __init__(self, top=2):
        super().__init__(top)
        self.experts = nn.ModuleList(map(Numbered, range(NUM)))

    def mixed(self, x, weights, chosen):
        total = torch.zeros_like(x)
        for i in range(self.num):
            each = next(e for e in self.experts if e.place < i + 1 and e.place > i - 1)
            token, slot = torch.where(chosen == i)
            total.index_add_(0, token, each(x[token]) * weights[token, slot, None])
        return total


NETS = [DenseMask, DenseMaskAfter, Scattered, Where, WhereIfAny, MaskedRows, OneHot, TopOne, KnowTheirPlaces]
X = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(0))


def made(make, *args):
    torch.manual_seed(0)
    return make(*args)


@pytest.mark.parametrize("make", NETS)
def test_what_is_left_is_the_network_whose_router_never_chooses_the_others(make, tmp_path):
    model = made(make).double()
    x = X.double()
    result = topiarist.prune(model, x, structure="expert", saliency="l2", budget=Budget(sparsity=0.5))
    small = result.model
    ((name, gone),) = result.plan.removed.items()
    assert (name, int(gone.sum())) == ("router.weight:0", NUM // 2)
    assert (len(small.experts), small.router.out_features, small.num) == (3, 3, 3)
    fresh = torch.randn(50, WIDTH, dtype=torch.float64)
    assert gap(small, model, gone, fresh) <= 1e-9
    assert gap(small, model, gone.roll(1), fresh) > 1e-3
    assert result.verification.passed
    assert result.verification.unchosen == (name,)
    loaded = topiarist.load(topiarist.save(small, tmp_path), build=make)
    with torch.no_grad():
        torch.testing.assert_close(loaded.double()(fresh), small(fresh), rtol=0, atol=0)


@pytest.mark.parametrize("make", NETS)
def test_the_bill_is_exact(make):
    model = made(make)
    result = topiarist.prune(model, X, structure="expert", budget=Budget(sparsity=0.5))
    params = [sum(p.numel() for p in net.parameters()) for net in (model, result.model)]
    assert result.plan.achieved["params"] == params[1] / params[0]
    macs = [count_macs(net, X) for net in (model, result.model)]
    assert trace(model, X).num_macs() == pytest.approx(macs[0], rel=1e-12)
    assert result.plan.achieved["macs"] == pytest.approx(macs[1] / macs[0], rel=1e-12)


@pytest.mark.parametrize("make", [DenseMask, Where, OneHot, MaskedRows])
def test_entries_off_by_one_are_caught(make):
    model = made(make)
    plan = topiarist.plan(model, X, structure="expert", budget=Budget(sparsity=0.5))
    assert topiarist.verify(model, topiarist.shrink(model, plan), plan, X).passed
    ((path, gone),) = plan.shortened.items()
    sabotaged = replace(plan, shortened={path: gone.roll(1)})
    assert not topiarist.verify(model, topiarist.shrink(model, sabotaged), sabotaged, X).passed


def test_rows_of_the_router_off_by_one_are_caught():
    model = made(Where)
    plan = topiarist.plan(model, X, structure="expert", budget=Budget(sparsity=0.5))
    shifted = {name: tuple(Slice(s.dim, s.removed.roll(1)) for s in pieces) for name, pieces in plan.slices.items()}
    sabotaged = replace(plan, slices=shifted)
    assert not topiarist.verify(model, topiarist.shrink(model, sabotaged), sabotaged, X).passed


def test_a_list_in_another_order_is_caught():
    model = made(Where)
    plan = topiarist.plan(model, X, structure="expert", budget=Budget(sparsity=0.5))
    small = topiarist.shrink(model, plan)
    small.experts.insert(0, small.experts.pop(2))
    with pytest.raises(InputError, match="is not what the plan leaves"):
        topiarist.verify(model, small, plan, X)


def test_scores_are_those_of_the_expert_s_own_weights():
    model = made(Where)
    norms = torch.tensor(
        [sum(float(p.detach().double().pow(2).sum()) for p in each.parameters()) for each in model.experts]
    )
    norms = norms + torch.cat([model.router.weight, model.router.bias[:, None]], 1).detach().pow(2).sum(1)
    plan = topiarist.plan(model, X, structure="expert", saliency="l2", budget=Budget(sparsity=0.5))
    (gone,) = plan.removed.values()
    assert set(gone.nonzero().flatten().tolist()) == set(norms.argsort()[:3].tolist())


@pytest.mark.parametrize("top", [1, 2, 4])
def test_as_many_stay_as_are_chosen(top):
    model = made(Where, top)
    plan = topiarist.plan(model, X, structure="expert", budget=Budget(sparsity=1 - top / NUM))
    assert len(topiarist.shrink(model, plan, X).experts) == top
    with pytest.raises(BudgetError, match=f"keeps {top}"):
        topiarist.plan(model, X, structure="expert", budget=Budget(params=0.01))


def test_plans_are_stored_and_masks_zero_whole_experts():
    model = made(Where)
    plan = topiarist.plan(model, X, structure="expert", budget=Budget(sparsity=0.5))
    assert Plan.from_json(plan.to_json()) == plan
    assert replace(plan, shortened={}) != plan
    (gone,) = plan.removed.values()
    before = copy.deepcopy(model.state_dict())
    topiarist.mask(model, plan)
    for i, each in enumerate(model.experts):
        assert all(bool((p == 0).all()) == bool(gone[i]) for p in each.parameters())
    topiarist.unmask(model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_second_cut_knows_the_first(tmp_path):
    model = made(Where)
    once = topiarist.prune(model, X, structure="expert", budget=Budget(sparsity=1 / 3)).model
    twice = topiarist.prune(once, X, structure="expert", budget=Budget(sparsity=0.5)).model
    assert len(twice.experts) == 2
    loaded = topiarist.load(topiarist.save(twice, tmp_path), build=Where)
    torch.testing.assert_close(loaded(X), twice(X), rtol=0, atol=0)
    with pytest.raises(FormatError, match="does not fit"):
        topiarist.load(tmp_path, build=lambda: Where(num=2))


def test_each_of_two_mixtures_loses_its_own_and_widths_go_too():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Where(), OneHot()])

        def forward(self, x):
            for block in self.blocks:
                x = x + F.pad(block(x), (0, WIDTH - 3))
            return x

    model = made(Two)
    result = topiarist.prune(model, X, structure="expert", budget=Budget(sparsity=0.5))
    assert set(result.plan.removed) == {"blocks.0.router.weight:0", "blocks.1.router.weight:0"}
    assert set(result.plan.shortened) == {"blocks.0.experts", "blocks.1.experts"}
    narrow = topiarist.prune(result.model, X, structure="channel", budget=Budget(sparsity=0.3))
    assert narrow.verification.passed
    last = topiarist.prune(narrow.model, X, structure="expert", budget=Budget(sparsity=0.1))
    params = [sum(p.numel() for p in net.parameters()) for net in (narrow.model, last.model)]
    assert last.plan.achieved["params"] == params[1] / params[0]  # experts are of several sizes now


def test_names_and_optimizers_follow_the_new_numbers():
    model = made(Where)
    optimizer = torch.optim.Adam(model.parameters())
    model(X).pow(2).sum().backward()
    optimizer.step()
    plan = topiarist.plan(model, X, structure="expert", budget=Budget(sparsity=0.5))
    small = topiarist.shrink(model, plan)
    own = dict(small.named_parameters())
    names = {name: plan.renamed(name) for name, _ in model.named_parameters()}
    assert {name for name in names.values() if name is not None} == own.keys()
    carried = topiarist.recover.carry_optimizer(optimizer, model, small, plan)
    for name, parameter in model.named_parameters():
        if names[name] is not None and name not in plan.slices:
            assert torch.equal(own[names[name]], parameter)
            found, before = carried.state[own[names[name]]], optimizer.state[parameter]
            assert torch.equal(found["exp_avg"], before["exp_avg"])
    assert sum(len(group["params"]) for group in carried.param_groups) == len(own)


def test_a_single_token_is_enough_to_see_it():
    axis = trace(made(WhereIfAny, 1), X[:1])["router.weight:0"]
    assert (axis.lists, axis.pins, axis.minimum) == (("experts",), (), 1)
    assert "entry i of experts goes with index i" in trace(made(Where), X).explain("router.weight:0")


def test_nothing_is_left_behind():
    model = made(WhereIfAny)
    with nothing_left_behind(model, X):
        topiarist.prune(model, X, structure="expert", budget=Budget(sparsity=0.5))


# --------------------------------------------------------------------------------------------------- what is refused


class Counted(Where):
    """The indices are numbers as well."""

    def mixed(self, x, weights, chosen):
        return super().mixed(x, weights, chosen) + chosen.sum(-1, keepdim=True)


class Constant(Mixture):
    """Each expert leaves something with every token, whoever chose it."""

    def mixed(self, x, weights, chosen):
        total = torch.zeros_like(x)
        for i, each in enumerate(self.experts):
            total = total + each(x) * torch.exp((weights * (chosen == i)).sum(-1, keepdim=True))
        return total


class Mean(DenseMask):
    """What every expert says of every token counts as well."""

    def mixed(self, x, weights, chosen):
        return super().mixed(x, weights, chosen) + torch.stack([each(x) for each in self.experts]).mean(0)


class Shifted(Mixture):
    """Expert i deals with the tokens of the next index."""

    def mixed(self, x, weights, chosen):
        total = torch.zeros_like(x)
        for i in range(self.num):
            token, slot = torch.where(chosen == (i + 1) % NUM)
            total.index_add_(0, token, self.experts[i](x[token]) * weights[token, slot, None])
        return total


class Few(Mixture):
    """Two experts take turns."""

    def __init__(self):
        super().__init__()
        self.experts = self.experts[:2]

    def mixed(self, x, weights, chosen):
        total = torch.zeros_like(x)
        for i in range(self.num):
            token, slot = torch.where(chosen == i)
            total.index_add_(0, token, self.experts[i % 2](x[token]) * weights[token, slot, None])
        return total


@pytest.mark.parametrize("make", [Counted, Constant, Mean, Shifted, Few])
def test_other_uses_of_the_choice_pin_the_router(make):
    model = made(make)
    axis = trace(model, X)["router.weight:0"]
    assert any("its indices become values" in reason for reason in axis.pins)
    with pytest.raises(InputError, match="no expert that may go"):
        topiarist.plan(model, X, structure="expert", budget=Budget(sparsity=0.5))


def test_a_number_of_experts_that_becomes_a_value_unseen_is_refused():
    class Scaled(Where):
        def mixed(self, x, weights, chosen):
            return super().mixed(x, weights, chosen) / len(self.experts)

    with pytest.raises(InputError, match="DIFFER"):
        topiarist.prune(made(Scaled), X, structure="expert", budget=Budget(sparsity=0.5))


def test_a_number_of_experts_in_the_code_is_refused():
    class Literal(Mixture):
        def mixed(self, x, weights, chosen):
            total = torch.zeros_like(x)
            for i in range(6):
                token, slot = torch.where(chosen == i)
                total.index_add_(0, token, self.experts[i](x[token]) * weights[token, slot, None])
            return total

    with pytest.raises(InputError, match=r"index 3 is out of range|IndexError"):
        topiarist.prune(made(Literal), X, structure="expert", budget=Budget(sparsity=0.5))

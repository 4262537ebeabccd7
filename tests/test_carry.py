"""Training goes on after shrinking as the masked model's would; an optimizer that forgets shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from topiarist import Budget
from topiarist.errors import InputError
from topiarist.mask import mask, unmask
from topiarist.recover import carry_optimizer


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 6), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(6, 3)).double()


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, num: int, start: int = 0) -> None:
    model.train()
    for step in range(start, start + num):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 2, 5, 5, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(16) % 3).backward()
        optimizer.step()


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_and_shrunk_training_agree(name: str) -> None:
    net = _net()
    groups = [{"params": [p for n, p in net.named_parameters() if "weight" in n]},
              {"params": [p for n, p in net.named_parameters() if "weight" not in n], "weight_decay": 0.0}]  # fmt: skip
    optimizer = OPTIMIZERS[name](groups)
    _steps(net, optimizer, 5)
    plan = topiarist.plan(net, torch.zeros(1, 2, 5, 5).double(), structure="channel", budget=Budget(sparsity=0.5))
    mask(net, plan)
    _steps(net, optimizer, 1, start=5)  # the state is masked right after a step
    small, forgetful = topiarist.shrink(net, plan), topiarist.shrink(net, plan)
    carried, fresh = carry_optimizer(optimizer, net, small, plan), OPTIMIZERS[name](forgetful.parameters())
    for model, opt in ((net, optimizer), (small, carried), (forgetful, fresh)):
        _steps(model, opt, 4, start=6)
    wanted = topiarist.shrink(unmask(net, restore=False), plan).state_dict()
    apart = [
        max(float((model.state_dict()[key] - value).abs().max()) for key, value in wanted.items() if value.dim())
        for model in (small, forgetful)
    ]
    assert apart[0] < 1e-9
    assert apart[1] > 1e-5
    assert [group["weight_decay"] for group in carried.param_groups] == [
        g["weight_decay"] for g in optimizer.param_groups
    ]


def test_a_state_or_a_parameter_that_cannot_be_carried_is_named() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4)
    plan = topiarist.plan(net, x, structure="channel", budget=Budget(sparsity=0.5))
    small = topiarist.shrink(net, plan)
    optimizer = torch.optim.SGD([*net.parameters(), nn.Parameter(torch.zeros(7))], lr=0.1)
    with pytest.raises(InputError, match=r"shape \(7,\) that Sequential lacks"):
        carry_optimizer(optimizer, net, small, plan)
    factored = torch.optim.SGD(net.parameters(), lr=0.1)
    factored.state[net[0].weight]["row"] = torch.zeros(8)
    with pytest.raises(InputError, match=r"row of 0\.weight has shape"):
        carry_optimizer(factored, net, small, plan)


def test_frozen_parameters_without_a_state_are_carried_too() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(1, 4)
    net[0].requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters())
    net(x).sum().backward()
    optimizer.step()
    plan = topiarist.plan(net, x, structure="channel", budget=Budget(sparsity=0.5))
    small = topiarist.shrink(net, plan)
    carried = carry_optimizer(optimizer, net, small, plan)
    assert {id(p) for p in carried.state} == {id(p) for p in small[2].parameters()}
    assert len(carried.param_groups[0]["params"]) == 4

"""Distillation against NumPy, a student that is its teacher, and the conditions of every term."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.data import Batches
from topiarist.errors import InputError
from topiarist.recover import Distil, RecoveryContext, TrainingRecipe
from topiarist.recover.distil import attention_transfer, soft_targets


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_against_numpy(temperature: float) -> None:
    z_s, z_t = _rand(2, 5, 3), _rand(2, 5, 3, seed=1)
    p, q = (_softmax(z.numpy() / temperature) for z in (z_t, z_s))
    wanted = temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1).mean()
    assert soft_targets(z_s, z_t, temperature).item() == pytest.approx(wanted, rel=1e-12)
    assert soft_targets(z_t, z_s, temperature).item() != pytest.approx(wanted, rel=1e-3)  # the other way round


def test_attention_transfer_against_numpy() -> None:
    f_s, f_t = _rand(3, 4, 2, 2), _rand(3, 4, 2, 2, seed=1)
    q_s, q_t = ((f.numpy() ** 2).sum(1).reshape(3, -1) for f in (f_s, f_t))
    unit = lambda q: q / np.linalg.norm(q, axis=1, keepdims=True)  # noqa: E731
    wanted = ((unit(q_s) - unit(q_t)) ** 2).sum(1).mean()
    assert attention_transfer(f_s, f_t).item() == pytest.approx(wanted, rel=1e-12)


def test_a_student_that_is_its_teacher_stays() -> None:
    """Every term is zero and so is its gradient; a teacher that is another pulls it away."""
    teacher, data = _net(), [_rand(6, 1, 4, 4)]
    recovery = Distil(TrainingRecipe(epochs=3, lr=0.1), hints=["0"], attention=["1"])
    for other in (False, True):
        student = copy.deepcopy(teacher)
        guide = copy.deepcopy(teacher)
        with torch.no_grad():
            guide[3].weight.add_(0.5 * other)
            guide[3].weight[0].mul_(1 - 2 * other)
        rows = recovery(student, RecoveryContext(data=data, dense=guide))
        pairs = zip(student.parameters(), teacher.parameters(), strict=True)
        same = all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)
        assert same is not other
        assert (rows[0]["loss"] < 1e-12) is not other


def test_it_brings_a_student_closer_without_labels() -> None:
    teacher, student = _net().train(), _net()
    with torch.no_grad():
        student[0].weight[:2] = 0.0
    before = {name: p.clone() for name, p in teacher.state_dict().items()}
    seen: list[Any] = []
    data = [_rand(16, 1, 4, 4, seed=s) for s in range(4)]
    recovery = Distil(TrainingRecipe(epochs=20, lr=0.05, momentum=0.9), hints=["3"])
    rows = recovery(student, RecoveryContext(data=data, dense=teacher, progress=seen.append))
    assert rows[-1]["loss"] < 0.2 * rows[0]["loss"]
    assert len(seen) == len(rows) == 80
    assert all(torch.equal(before[name], p) for name, p in teacher.state_dict().items())
    assert teacher.training
    assert not any(m._forward_hooks for net in (teacher, student) for m in net.modules())


def test_the_task_joins_with_its_weight() -> None:
    """A first step's loss is the sum of its parts."""
    teacher, student = _net(), _net()
    with torch.no_grad():
        student[3].weight.mul_(0.5)
    x, y = _rand(6, 1, 4, 4), torch.arange(6) % 3
    recovery = Distil(TrainingRecipe(epochs=1, lr=0.0), temperature=2.0, logits=0.3, task=0.7)
    [row] = recovery(student, RecoveryContext(data=Batches(x, y, 6), loss=F.cross_entropy, dense=teacher))
    wanted = 0.3 * soft_targets(student(x), teacher(x), 2.0) + 0.7 * F.cross_entropy(student(x), y)
    assert row["loss"] == pytest.approx(wanted.item(), rel=1e-12)


def test_what_is_missing_is_said() -> None:
    net, data = _net(), [_rand(2, 1, 4, 4)]
    with pytest.raises(InputError, match="no module '9'"):
        Distil(hints=["9"])(net, RecoveryContext(data=data, dense=net))
    with pytest.raises(InputError, match="needs the dense=… model"):
        Distil()(net, RecoveryContext(data=data))
    with pytest.raises(InputError, match="loss=…"):
        Distil(task=1.0)(net, RecoveryContext(data=data, dense=net))
    with pytest.raises(InputError, match="temperature"):
        Distil(temperature=0)
    flat = nn.Flatten(0)
    with pytest.raises(InputError, match="logits"):
        Distil()(nn.Sequential(nn.Linear(4, 1), flat), RecoveryContext(
            data=[torch.zeros(2, 4)], dense=nn.Sequential(nn.Linear(4, 1), flat)))  # fmt: skip

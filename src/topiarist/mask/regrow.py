"""Sparse from the first step to the last: what is small goes, what the gradient asks for comes (RigL, SET)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from topiarist.allocation.base import share
from topiarist.allocation.select import select
from topiarist.errors import FormatError, InputError
from topiarist.mask.attach import mask, unmask
from topiarist.plan import Plan

Grow = Literal["gradient", "random"]


def drop_fraction(step: int, end: int, fraction: float = 0.3) -> float:
    """Which part of a layer's weights is exchanged at a step: f(t) = α/2 · (1 + cos(πt / T_end)) (Evci et al. 2020).

    Example:
        >>> [round(drop_fraction(step, end=100), 3) for step in (0, 50, 100)]
        [0.3, 0.15, 0.0]
    """
    return fraction / 2 * (1 + math.cos(math.pi * step / end))


class Regrower:
    """Trains a sparse model sparse: call `step` after each ``optimizer.step()``, before the gradients are cleared.

    Every ``every`` steps t < ``end`` each layer drops the k = ⌊f(t) · nnz + ½⌋ of its weights with the least |w| and
    grows as many: where |∂L/∂(W ⊙ M)| is largest (``grow="gradient"``: RigL, Evci et al. 2020) or at random
    (``"random"``: SET, Mocanu et al. 2018), among all positions that were not kept; one just dropped may be chosen
    again and keeps its value. What is grown starts at 0, and so does its optimizer state. f is `drop_fraction`. The
    number of weights of each layer never changes.

    Masked weights are stored as zeros, so that ``.grad`` at their places is the dense gradient; it may be accumulated
    over several batches. Weights are compared after the optimizer's step, not in its stead as in the paper.

    Args:
        model: the model in training; it is masked in place, right away. `topiarist.unmask` ends it.
        plan: the weights that are off at first, as ``topiarist.plan(…, saliency="random", budget=…)`` makes it.
        end: T_end, the step from which nothing is exchanged any more; three quarters of the training, say.
        every: ΔT, steps between exchanges.
        fraction: α, the part exchanged at first.
        seed: for growing at random, which leaves the global random state alone.

    Raises:
        InputError: the plan is not one of single weights or does not fit, or a number is out of range.

    Example:
        >>> layer = nn.Linear(3, 1, bias=False)
        >>> plan = Plan("weight", {"weight": torch.tensor([False, True, True])})
        >>> regrower = Regrower(layer, plan, end=4, every=1, fraction=1.0)
        >>> layer(torch.tensor([[0.0, 0.0, 1.0]])).sum().backward()
        >>> regrower.step().removed["weight"].tolist()
        [True, True, False]
        >>> _ = unmask(layer)
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        end: int,
        every: int = 100,
        fraction: float = 0.3,
        grow: Grow = "gradient",
        seed: int = 0,
    ) -> None:
        if plan.structure != "weight":
            raise InputError(f"regrowing exchanges single weights, got a plan of structure {plan.structure!r}")
        if grow not in ("gradient", "random"):
            raise InputError(f"grow is 'gradient' (RigL) or 'random' (SET), got {grow!r}")
        if end < 1 or every < 1 or not 0 <= fraction <= 1:
            raise InputError(f"end and every are 1 or more, fraction in [0, 1]: got {end!r}, {every!r}, {fraction!r}")
        self._model = getattr(model, "_orig_mod", model)
        self._end, self._every, self._fraction = end, every, fraction
        self._grow, self._seed = grow, seed
        self._step, self._plan = 0, plan
        mask(self._model, plan)

    @property
    def plan(self) -> Plan:
        """What is off now."""
        return self._plan

    def step(self) -> Plan | None:
        """Count a training step; where it is one of an exchange, make it and return the new plan.

        Raises:
            InputError: a layer has no gradient to grow by.
        """
        self._step += 1
        if self._step % self._every or self._step >= self._end:
            return None
        part = drop_fraction(self._step, self._end, self._fraction)
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        removed = {
            name: self._exchange(name, parameters[name], gone, part) if bool(gone.any()) else gone
            for name, gone in self._plan.removed.items()
        }
        self._take(replace(self._plan, removed=removed))
        return self._plan

    def state_dict(self) -> dict[str, Any]:
        """Where the training is, as a dict of plain values; the weights are in the model's own state dict."""
        return {"step": self._step, "plan": self._plan.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, after the model and the optimizer were loaded.

        Raises:
            FormatError: the state is not one of a regrower, or is damaged.
            InputError: its plan does not fit the model.
        """
        step, text = state.get("step"), state.get("plan")
        if type(step) is not int or step < 0 or not isinstance(text, str):
            raise FormatError(
                f"not the state of a regrower: step {step!r}, plan {text!r:.40}; pass what state_dict gave"
            )
        self._take(Plan.from_json(text))
        self._step = step

    def _take(self, plan: Plan) -> None:
        unmask(self._model, restore=False)  # what is grown starts at 0
        self._plan = plan
        mask(self._model, plan)

    def _exchange(self, name: str, weight: Tensor, gone: Tensor, part: float) -> Tensor:
        """Which weights of a layer are off after the exchange: bool ``(num weights,)``."""
        num_gone, gone = int(gone.count_nonzero()), gone.to(weight.device)
        num_dropped = share(part, gone.numel() - num_gone)
        dropped = select({name: weight.detach().abs().flatten()}, num_gone + num_dropped, {name: gone})
        return select({name: self._scores(name, weight)}, num_gone, keep={name: ~dropped[name]})[name]

    def _scores(self, name: str, weight: Tensor) -> Tensor:
        """How much each position asks to be grown: floats ``(num weights,)``."""
        if self._grow == "random":
            digest = hashlib.sha256(f"{self._seed}:{self._step}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            return torch.rand(weight.numel(), generator=generator).to(weight.device)
        if weight.grad is None:
            raise InputError(f"{name} has no gradient to grow by; call step() after backward() and before zero_grad()")
        return weight.grad.detach().abs().flatten()

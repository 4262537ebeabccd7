"""Adversarial neural pruning with vulnerability suppression, and the ladder of its baselines (Madaan et al. 2020)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from topiarist.allocation import Candidates
from topiarist.allocation.global_ import Global
from topiarist.errors import InputError, nearest
from topiarist.inputs import as_batch, call
from topiarist.mask.gates import BetaBernoulli, Gates
from topiarist.methods.attack import PGD, Masking, features_of, robustness, vulnerability
from topiarist.methods.base import method
from topiarist.methods.loop import descend_apart, each_step, finished
from topiarist.plan import Budget
from topiarist.planning import Evaluate, Loss
from topiarist.pruning import OnStep, PruneResult, prune
from topiarist.recover.train import Row
from topiarist.saliency import Gate


@dataclass(frozen=True)
class Variant:
    """What a row of the ladder does: trains on adversarial examples, learns a mask, suppresses vulnerability."""

    attacks: bool = False
    masks: bool = False
    suppresses: bool = False


VARIANTS = {
    "standard": Variant(),
    "at": Variant(attacks=True),
    "bp": Variant(masks=True),
    "anp": Variant(attacks=True, masks=True),
    "at-vs": Variant(attacks=True, suppresses=True),
    "anp-vs": Variant(attacks=True, masks=True, suppresses=True),
}


@method(
    paper="Madaan, Shin, Hwang 2020, Adversarial neural pruning with latent vulnerability suppression",
    structure="channel",
    needs=("data", "training"),
    when="during",
    headline="VGG-16 on CIFAR-10: clean 88.18, under PGD 56.21 at sparsity 0.765; adversarial training 87.50 and 49.85",
)
def adversarial(
    model: nn.Module,
    example_inputs: Any,
    *,
    data: Iterable[Any],
    loss: Loss,
    budget: Budget | None = None,
    variant: str = "anp-vs",
    attack: PGD | None = None,
    epochs: float = 10,
    lr: float = 0.001,
    mask_lr: float = 0.01,
    milestones: Sequence[float] = (0.5, 0.8),
    divergence: float = 4.0,
    suppression: float = 1e-3,
    weight_decay: float = 1e-4,
    openness: float = 2.0,
    validation: Iterable[Any] | None = None,
    keep: Sequence[str] = (),
    evaluate: Evaluate | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> PruneResult:
    """Learn weights and a beta-Bernoulli mask of channels on adversarial examples, and remove what the mask closes.

    With CE on clean and CE̅ on adversarial examples, KL of the mask over N training examples and V the distortion of
    features (see `topiarist.methods.attack`), the mask (a, b) descends CE̅ + β KL / N, and the weights θ
    (CE + 2 CE̅) / 3 + β KL / N + 1e-4 ‖θ‖² + λ V, by Adam; ``model`` is the trained network to start from.

    Args:
        budget: what is left of the network, by the channels' E[π]; without, only those go whose E[π] is below 0.001.
        variant: ``"standard"`` (more training), ``"at"`` (adversarial training), ``"bp"`` (the mask on clean examples),
            ``"anp"`` (λ = 0), ``"at-vs"`` (no mask) or ``"anp-vs"``.
        attack: the adversary; ε 0.3 in 20 steps of 0.01 unless given, as for MNIST.
        epochs: how long; learning rates fall to a tenth at ``milestones``, parts of the way.
        lr: the learning rate of the weights, ``mask_lr`` that of the mask.
        divergence: β; ``suppression`` is λ.
        openness: a_uc at first, of which E[π] is 0.68 at 2 (VGG in the paper) and 0.24 at −1 (LeNet).
        validation: on these the curve has ``clean_accuracy``, ``attack_accuracy`` and ``vulnerability``, of the masked
            network before what is closed is cut off.

    Other options are those of `topiarist.prune`.

    Raises:
        InputError: the variant is not known, inputs are no floats, or there is a budget and no mask to meet it by.
        BudgetError: the budget cannot be reached.
    """
    if variant not in VARIANTS:
        raise InputError(f"no variant is called {variant!r} ({nearest(variant, VARIANTS)})")
    parts = VARIANTS[variant]
    if budget is not None and not parts.masks:
        raise InputError(f"variant {variant!r} learns no mask that could meet {budget!r}; try 'anp-vs', or no budget")
    work = copy.deepcopy(model)
    gates = Gates(work, example_inputs, partial(BetaBernoulli, a=openness), keep=keep) if parts.masks else None
    training = _Training(work, gates, parts, loss, attack or PGD(), divergence / _num_examples(data), suppression)
    rows = training.run(data, epochs, (lr, mask_lr), milestones, 2 * weight_decay, on_step)
    judged = {} if validation is None else training.judge(validation)
    values = {} if gates is None else {u.name: gates[u.name].deterministic() for u in gates.units}
    if gates is not None:
        gates.fold()
    for ignored in ("checkpoints", "folder", "recipe"):  # the model's own training is not gone back to
        options.pop(ignored, None)
    way: dict[str, Any] = {"saliency": Gate(values) if values else "l2", "allocation": _Closed(values)}
    if budget is not None:
        way = {**way, "allocation": Global("none"), "budget": budget}
    result = prune(work, example_inputs, structure="channel", keep=keep, **way, **options)
    return finished(
        result, result.model, rows, lambda small: {**judged, **(evaluate(small) if evaluate else {})}, on_step
    )


@dataclass(frozen=True)
class _Closed:
    """The allocation that removes the units whose gate is zero, as far as they may go."""

    values: Mapping[str, Tensor]
    needs_budget: ClassVar[bool] = False

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        num = {u.name: int((self.values[u.name] == 0).sum()) if self.values else 0 for u in candidates.units}
        return {u.name: candidates.lowest(u, min(num[u.name], candidates.most(u))) for u in candidates.units}


@dataclass(frozen=True, eq=False)
class _Training:
    model: nn.Module
    gates: Gates | None
    parts: Variant
    loss: Loss
    attack: PGD
    divergence: float  # β / N
    suppression: float

    def run(
        self,
        data: Iterable[Any],
        epochs: float,
        rates: tuple[float, float],
        milestones: Sequence[float],
        weight_decay: float,
        on_step: OnStep | None,
    ) -> list[Row]:
        """Train weights and masks in place."""
        weights = [p for p in self.model.parameters() if p.requires_grad]
        masks = [] if self.gates is None else [*self.gates.parameters()]
        optimizers = [torch.optim.Adam(weights, rates[0], weight_decay=weight_decay)]
        optimizers += [torch.optim.Adam(masks, rates[1])] if masks else []

        def step(inputs: Any, targets: Any, progress: float) -> Row:
            fallen = 0.1 ** sum(progress >= milestone for milestone in milestones)
            for optimizer, rate in zip(optimizers, rates, strict=False):
                optimizer.param_groups[0]["lr"] = rate * fallen
            of_weights, of_masks, row = self.losses(inputs, targets)
            descend_apart([(of_weights, weights), (of_masks, masks)], *optimizers)
            return {**row, "lr": rates[0] * fallen}

        with self.attached():
            return each_step(self.model, data, epochs, step, on_step=on_step)

    def losses(self, inputs: Any, targets: Any) -> tuple[Tensor, Tensor, Row]:
        """Of a batch, the loss of the weights, that of the masks, and what there is to report."""
        divergence = torch.zeros(()) if self.gates is None else self.divergence * self.gates.penalty()
        if not self.parts.attacks:
            task = self.loss(call(self.model, inputs), targets) + divergence
            return task, task, {"loss": float(task.detach())}
        moved = self.attack(self.model, inputs, targets, self.loss)
        with features_of(self.model, self.masking()) as features:
            outputs = self.model(torch.cat((inputs, moved)))  # the same masks for both
        clean, under_attack = (self.loss(out, targets) for out in outputs.chunk(2))
        distortion = vulnerability(features)
        of_weights = (clean + 2 * under_attack) / 3 + divergence
        if self.parts.suppresses:
            of_weights = of_weights + self.suppression * distortion
        row = {"loss": float(of_weights.detach()), "vulnerability": float(distortion.detach())}
        return of_weights, under_attack + divergence, row

    def judge(self, data: Iterable[Any]) -> dict[str, float]:
        """Accuracies and vulnerability with the mask in place, without its noise."""
        with self.attached():
            found = robustness(self.model, data, self.attack, self.loss, self.masking())
        return {
            "clean_accuracy": found.clean,
            "attack_accuracy": found.attack,
            "vulnerability": found.vulnerability,
        }

    def masking(self) -> Masking:
        """What is kept of the features that a layer reads: those times E[π] of their channel."""
        factors = {} if self.gates is None else self.gates.factors()

        def masked(name: str, features: Tensor) -> Tensor:
            factor = factors.get(f"{name}.weight" if name else "weight")
            reads = factor is not None and len(factor) == 1  # along the inputs of the weight, not its outputs
            return features * factor[0] if factor is not None and reads else features

        return masked

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The mask on the model inside the ``with``."""
        if self.gates is not None:
            self.gates.attach()
        try:
            yield
        finally:
            if self.gates is not None:
                self.gates.detach()


def _num_examples(data: Iterable[Any]) -> int:
    num = sum(len(as_batch(batch)[1]) for batch in data)
    if not num:
        raise InputError("this method trains, and data yields no batch")
    return num

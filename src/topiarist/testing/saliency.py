"""What every criterion must do. Inherit the contract and override its fixture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from topiarist.plan import Member, Units
from topiarist.saliency.base import Saliency, Slices, needs, score
from topiarist.stats import Need

_NUM = 6


class SaliencyContract:
    """One finite float per unit, whose order follows the units and not their places; inputs stay as they are.

    Set ``equivariant = False`` for a criterion that does not look at the units. What the criterion needs is drawn at
    random with the shapes of the weights; override `stats` where it is of another kind.

    Example:
        class TestMine(SaliencyContract):
            @pytest.fixture
            def criterion(self):
                return my_criterion
    """

    equivariant = True

    @pytest.fixture
    def criterion(self) -> Saliency:
        """The criterion under test."""
        raise NotImplementedError("override the fixture `criterion`")

    def stats(self, need: Need, there: Slices, generator: torch.Generator) -> Any:
        """Something that statistic ``need`` may be for these units; tensors in it have the unit first."""
        del need
        return tuple(torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in there.weights)

    def slices(self, criterion: Saliency, widths: tuple[int, ...]) -> Slices:
        """Random slices with all that the criterion needs."""
        there, generator = slices(widths), torch.Generator().manual_seed(1)
        others = sorted(needs(criterion) - {"gradients"}, key=str)
        return replace(there, stats={**there.stats, **{need: self.stats(need, there, generator) for need in others}})

    @pytest.mark.parametrize("widths", [(1,), (4,), (3, 1, 9)])
    def test_one_finite_float_per_unit(self, criterion: Saliency, widths: tuple[int, ...]) -> None:
        scores = score(criterion, self.slices(criterion, widths))
        assert scores.shape == (_NUM,)
        assert scores.is_floating_point()
        assert torch.isfinite(scores).all()

    @pytest.mark.parametrize("widths", [(1,), (4,), (3, 1, 9)])
    def test_scores_follow_their_units(self, criterion: Saliency, widths: tuple[int, ...]) -> None:
        if not self.equivariant:
            pytest.skip("this criterion does not look at the units")
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        there = self.slices(criterion, widths)
        moved = Slices(there.units, *tree_map_only(Tensor, lambda t: t[order], (there.weights, dict(there.stats))))
        torch.testing.assert_close(score(criterion, moved), score(criterion, there)[order], rtol=1e-12, atol=0)

    def test_the_same_twice(self, criterion: Saliency) -> None:
        there = self.slices(criterion, (4, 2))
        assert torch.equal(score(criterion, there), score(criterion, there))

    def test_inputs_and_random_state_stay(self, criterion: Saliency) -> None:
        there, before, state = (
            self.slices(criterion, (4, 2)), self.slices(criterion, (4, 2)), torch.get_rng_state()
        )  # fmt: skip
        score(criterion, there)
        assert torch.equal(torch.get_rng_state(), state)
        for tensor, copy in zip(_tensors(there), _tensors(before), strict=True):
            assert torch.equal(tensor, copy)


def _tensors(there: Slices) -> list[Tensor]:
    return [leaf for leaf in tree_flatten((there.weights, dict(there.stats)))[0] if isinstance(leaf, Tensor)]


def slices(widths: tuple[int, ...], seed: int = 0) -> Slices:
    """Random slices of six units in double precision, with gradients: one member per width."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(2, _NUM, width, generator=generator, dtype=torch.float64) for width in widths]
    members = tuple(Member(f"layer{i}.weight", 0, torch.arange(_NUM)) for i in range(len(widths)))
    units = Units("layer0.out", _NUM, members, "layer0", "Linear")
    return Slices(units, tuple(d[0] for d in draws), {"gradients": tuple(d[1] for d in draws)})

"""What every criterion must do. Inherit the contract and override its fixture."""

from __future__ import annotations

import pytest
import torch

from topiarist.plan import Member, Units
from topiarist.saliency.base import Saliency, Slices, score

_NUM = 6


class SaliencyContract:
    """One finite float per unit, whose order follows the units and not their places; inputs stay as they are.

    Set ``equivariant = False`` for a criterion that does not look at the units.

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

    @pytest.mark.parametrize("widths", [(1,), (4,), (3, 1, 9)])
    def test_one_finite_float_per_unit(self, criterion: Saliency, widths: tuple[int, ...]) -> None:
        scores = score(criterion, slices(widths))
        assert scores.shape == (_NUM,)
        assert scores.is_floating_point()
        assert torch.isfinite(scores).all()

    @pytest.mark.parametrize("widths", [(1,), (4,), (3, 1, 9)])
    def test_scores_follow_their_units(self, criterion: Saliency, widths: tuple[int, ...]) -> None:
        if not self.equivariant:
            pytest.skip("this criterion does not look at the units")
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        there = slices(widths)
        moved = Slices(there.units, tuple(w[order] for w in there.weights), tuple(g[order] for g in there.gradients))
        torch.testing.assert_close(score(criterion, moved), score(criterion, there)[order], rtol=1e-12, atol=0)

    def test_the_same_twice(self, criterion: Saliency) -> None:
        assert torch.equal(score(criterion, slices((4, 2))), score(criterion, slices((4, 2))))

    def test_inputs_and_random_state_stay(self, criterion: Saliency) -> None:
        there, before, state = slices((4, 2)), slices((4, 2)), torch.get_rng_state()
        score(criterion, there)
        assert torch.equal(torch.get_rng_state(), state)
        for tensor, copy in zip(there.weights + there.gradients, before.weights + before.gradients, strict=True):
            assert torch.equal(tensor, copy)


def slices(widths: tuple[int, ...], seed: int = 0) -> Slices:
    """Random slices of six units in double precision, with gradients: one member per width."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(2, _NUM, width, generator=generator, dtype=torch.float64) for width in widths]
    members = tuple(Member(f"layer{i}.weight", 0, torch.arange(_NUM)) for i in range(len(widths)))
    units = Units("layer0.out", _NUM, members, "layer0", "Linear")
    return Slices(units, tuple(d[0] for d in draws), tuple(d[1] for d in draws))

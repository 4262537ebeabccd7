"""Gram matrices of convolution patches, against every product written out in NumPy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from topiarist.stats import Gram, Use, collect_inputs
from topiarist.stats.correlate import correlations
from topiarist.stats.patch_gram import Patches, direct, gram
from topiarist.stats.uses import Window


def patches(x: np.ndarray, window: Window) -> np.ndarray:
    """(groups, rows, inputs), one patch after another."""
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in window.padding)])
    across = [(k - 1) * d for k, d in zip(window.kernel, window.dilation, strict=True)]
    places = [range(0, n - a, s) for n, a, s in zip(x.shape[2:], across, window.stride, strict=True)]
    rows = []
    for sample in x:
        for at in product(*places):
            cut = tuple(slice(p, p + a + 1, d) for p, a, d in zip(at, across, window.dilation, strict=True))
            rows.append(sample[(slice(None), *cut)].reshape(window.groups, -1))
    return np.stack(rows, 1)


def products(x: torch.Tensor, window: Window) -> np.ndarray:
    rows = patches(x.double().numpy(), window)
    return np.einsum("gra,grb->gab", rows, rows)


@st.composite
def convolutions(draw: st.DrawFn) -> Use:
    """A use by a convolution of 1 to 3 dimensions with at least one output."""
    dims, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    most = (0, 12, 8, 4)[dims]
    axes = []
    for _ in range(dims):
        kernel, stride, padding, dilation = (draw(st.integers(*b)) for b in ((1, 4), (1, 3), (0, 3), (1, 3)))
        least = max(1, (kernel - 1) * dilation + 1 - 2 * padding)
        axes.append((draw(st.integers(least, max(least, most))), kernel, stride, padding, dilation))
    sizes, kernel, stride, padding, dilation = zip(*axes, strict=True)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (draw(st.integers(1, 3)), groups * draw(st.integers(1, 3)), *sizes)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Use("w", 1, x, Window(kernel, stride, padding, dilation, groups, False))


def usual(size: int, kernel: int = 3, stride: int = 1, padding: int = 1, groups: int = 1) -> Use:
    x = torch.randn(4, 4, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Use("w", 1, x, Window((kernel,) * 2, (stride,) * 2, (padding,) * 2, (1, 1), groups, False))


@settings(max_examples=150, deadline=None)
@given(convolutions())
@example(usual(8))
@example(usual(9, kernel=5, stride=2, padding=2))
@example(usual(6, padding=0, groups=2))
def test_it_is_the_sum_of_all_products(use: Use) -> None:
    wanted = products(use.inputs, use.window)
    size = np.abs(wanted).max()
    for found in (Patches(use, use.window).gram(), direct(use), gram(use)):
        if found is not None:
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 * size)
    rows = patches(use.inputs.numpy(), use.window)
    np.testing.assert_allclose(use.total(), rows.sum(1), rtol=0, atol=1e-12 * np.abs(rows).sum())
    assert use.num_rows == rows.shape[1]


@pytest.mark.parametrize("sabotage", ["borders", "phases", "shifts"])
def test_what_leaves_something_out_is_caught(sabotage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use = usual(8, stride=2)
    if sabotage == "borders":
        monkeypatch.setattr(Patches, "_beyond", lambda self: iter(()))
    elif sabotage == "phases":
        whole = Patches._phases
        monkeypatch.setattr(Patches, "_phases", lambda self: whole(self).roll(1, 2))
    else:
        monkeypatch.setattr("topiarist.stats.patch_gram.correlations", lambda *args: correlations(*args).mT)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(Patches(use, use.window).gram(), products(use.inputs, use.window), atol=1e-9)


def test_correlations_are_sums_of_shifted_products() -> None:
    x = torch.randn(3, 1, 2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shifts = [(0, 0), (0, 2), (1, -1), (2, 1)]
    found = correlations(x, shifts, (7, 6))
    maps = np.pad(x[:, 0].numpy(), [(0, 0), (0, 0), (2, 2), (2, 2)])
    for (down, right), matrix in zip(shifts, found[:, 0], strict=True):
        moved = np.roll(maps, (-down, -right), (2, 3))
        np.testing.assert_allclose(matrix, np.einsum("naij,nbij->ab", maps, moved), rtol=0, atol=1e-12)


def test_a_channel_seen_at_the_border_alone_keeps_its_digits() -> None:
    """Where an entry sees nothing, zero is zero, not a difference that rounds to nearly so."""
    use = usual(8)
    use.inputs[:, 1] = 0
    use.inputs[:, 1, 0, 0] = 1e3  # of the patches' entries, those right or below of the middle never see it
    wanted = products(use.inputs, use.window)
    found = Patches(use, use.window).gram()
    assert found is not None
    nothing = wanted[0].diagonal() == 0
    assert nothing.sum() == 5
    assert not found[0, nothing].any()
    assert not found[0, :, nothing].any()
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12 * np.abs(wanted).max())
    use.inputs[:, 1, 3, 3] = 1e-3  # now they see something, twelve digits below what they do not
    assert Patches(use, use.window).gram() is None
    np.testing.assert_allclose(gram(use), products(use.inputs, use.window), rtol=1e-12, atol=1e-12)


def test_the_cheaper_way_is_taken() -> None:
    def cheaper(*shape: int, kernel: int = 3, stride: int = 1) -> bool:
        window = Window((kernel,) * 2, (stride,) * 2, (kernel // 2,) * 2, (1, 1), 1, False)
        return Patches(Use("w", 1, torch.empty(shape), window), window).are_cheaper

    assert cheaper(128, 16, 32, 32)
    assert cheaper(32, 64, 8, 8)
    assert cheaper(8, 512, 14, 14)
    assert cheaper(16, 3, 112, 112, kernel=7, stride=2)
    assert not cheaper(32, 64, 32, 32, kernel=1)
    assert not cheaper(32, 256, 1, 1)
    assert not cheaper(1, 4, 4, 4)


def test_memory_is_that_of_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into many pieces, sums are the same."""
    use = usual(8)
    whole = Patches(use, use.window).gram(), direct(use)
    monkeypatch.setattr("topiarist.stats.correlate.AT_ONCE", 100)
    for before, after in zip(whole, (Patches(use, use.window).gram(), direct(use)), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-13, atol=1e-11)


def test_collected_in_single_precision_it_is_exact_in_double() -> None:
    torch.manual_seed(0)
    conv, data = nn.Conv2d(6, 2, 3, padding=1, padding_mode="reflect"), [torch.randn(n, 6, 12, 12) for n in (16, 3)]
    collected = Gram()
    collect_inputs(conv, data, {"weight": collected})
    x = np.pad(torch.cat(data).double().numpy(), [(0, 0), (0, 0), (1, 1), (1, 1)], mode="reflect")
    rows = patches(x, Window((3, 3), (1, 1), (0, 0), (1, 1), 1, False))
    wanted = np.einsum("gra,grb->gab", rows, rows)
    np.testing.assert_allclose(collected.matrix, wanted, rtol=0, atol=1e-12 * wanted.max())
    np.testing.assert_allclose(collected.total, rows.sum(1), rtol=0, atol=1e-10)
    assert collected.count == 19 * 144

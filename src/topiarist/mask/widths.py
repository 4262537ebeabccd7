"""Widths and depths that are searched: several sizes of a network at once, with probabilities that learn.

Dong and Yang 2019, "Network pruning via transformable architecture search" (TAS).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from topiarist.errors import InputError
from topiarist.graph import Axes, Axis
from topiarist.mask.replaced import Replaced
from topiarist.plan import Member, Units

FRACTIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def interpolate_channels(x: Tensor, size: int) -> Tensor:
    """Channel-wise interpolation: x (samples, channels, …) averaged along channels to ``size`` of them, the mean of
    channels ⌊i C / size⌋ to ⌈(i + 1) C / size⌉ − 1 in the place of channel i.

    Example:
        >>> interpolate_channels(torch.tensor([[1.0, 3.0, 5.0, 7.0]]), 2)
        tensor([[2., 6.]])
    """
    return (
        F.adaptive_avg_pool1d(x.movedim(1, -1).reshape(1, -1, x.shape[1]), size)
        .view(*x.movedim(1, -1).shape[:-1], size)
        .movedim(-1, 1)
    )


def gumbel(logits: Tensor, temperature: float) -> Tensor:
    """(log p + o) / τ with p = softmax(logits) and o = −log(−log u), u ~ U(0, 1): its largest entry is j with
    probability p_j."""
    uniform = torch.rand_like(logits).clamp(1e-10, 1 - 1e-7)
    noise: Tensor = -(-uniform.log()).log()
    return (logits.log_softmax(-1) + noise) / temperature


class Widths(nn.Module):
    """A distribution over numbers of channels for every axis; each forward pass in training mixes two of them.

    p = softmax(α); of candidates j, two are drawn without replacement from softmax(`gumbel` (α, τ)), and their
    probabilities p̄ renormalised over the two. What reads the axis reads Σ_j p̄_j CWI(O_1:C_j), the first C_j channels
    brought to the larger of the two numbers by `interpolate_channels`, the others zero. As that is linear, weights that
    read are multiplied by it in the activations' place, and the model keeps its class and its keys. In evaluation mode
    the first C_j channels of the likeliest j are read, the others are zero.

    Args:
        model: the model.
        axes: its axes; ``units`` are the sets of channels that are searched.
        fractions: the candidates, as parts of each number.
    """

    def __init__(
        self, model: nn.Module, axes: Axes, units: Sequence[Units], fractions: Sequence[float] = FRACTIONS
    ) -> None:
        super().__init__()
        if not fractions or not all(0 < f <= 1 for f in fractions):
            raise InputError(f"candidates are fractions in (0, 1], got {list(fractions)}")
        parameters = dict(model.named_parameters(remove_duplicate=False))
        readers = {u.name: [m for m in axes.readers(u.name) if m.tensor in parameters] for u in units if not u.step}
        self.readers = {name: members for name, members in readers.items() if members}
        self.sizes = {u.name: sizes(u.num, max(1, u.minimum), fractions) for u in units if u.name in self.readers}
        self._leaves: dict[str, Axis] = {name: axes[name].leaf for name in self.sizes}
        device = next(iter(parameters.values())).device
        self.logits = nn.ParameterList(nn.Parameter(torch.zeros(len(s), device=device)) for s in self.sizes.values())
        self.temperature = 1.0
        names = dict.fromkeys(m.tensor for members in self.readers.values() for m in members)
        self.replaced = Replaced(model, [*names], self._mixed)

    def probabilities(self) -> dict[str, Tensor]:
        """p by axis."""
        return {name: logits.softmax(0) for name, logits in zip(self.sizes, self.logits, strict=True)}

    def expected(self, probabilities: Mapping[str, Tensor]) -> dict[Axis, Tensor]:
        """Σ_j p_j C_j of each axis."""
        return {self._leaves[n]: (p * torch.tensor(self.sizes[n]).to(p)).sum() for n, p in probabilities.items()}

    def mixing(self, name: str) -> Tensor:
        """The matrix (channels, channels) that turns the channels of the axis into those that are read."""
        logits, candidates = self.logits[[*self.sizes].index(name)], self.sizes[name]
        num = max(candidates)
        if not self.replaced.model.training:
            best = candidates[int(logits.argmax())]
            return torch.diag((torch.arange(num, device=logits.device) < best).to(logits.dtype))
        perturbed = gumbel(logits, self.temperature)
        drawn = torch.multinomial(perturbed.detach().softmax(0), min(2, len(candidates)))
        weights = perturbed[drawn].softmax(0)
        largest = max(candidates[int(j)] for j in drawn)
        each = [_first(candidates[int(j)], largest, num).to(weights) for j in drawn]
        return torch.einsum("j,jcd->cd", weights, torch.stack(each))

    def _mixed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mixed = dict(weights)
        for name, members in self.readers.items():
            mixing = self.mixing(name)
            for member in members:
                mixed[member.tensor] = _read_through(mixed[member.tensor], member, mixing)
        return mixed


class Depths(nn.Module):
    """A distribution over the number of layers of every chain of layers that may be passed by.

    What a chain of n layers returns is, in training, Σ_l p̂_l h_l with p̂ = softmax(`gumbel` (β, τ)) and h_l what its
    layer l returned (h_0 its input); in evaluation mode h_l of the likeliest l.

    Args:
        model: the model.
        chains: module names in the order in which they run, each with the least number of them that must stay.
    """

    def __init__(self, model: nn.Module, chains: Sequence[tuple[Sequence[str], int]]) -> None:
        super().__init__()
        self.chains = tuple((tuple(names), least) for names, least in chains)
        device = next(model.parameters()).device
        self.logits = nn.ParameterList(
            nn.Parameter(torch.zeros(len(names) - least + 1, device=device)) for names, least in self.chains
        )
        self.temperature = 1.0
        self._models = (model,)  # in a tuple: it is none of our submodules
        self._handles: list[RemovableHandle] = []

    def probabilities(self) -> list[Tensor]:
        """p of each chain, over ``least`` to all of its layers."""
        return [logits.softmax(0) for logits in self.logits]

    def present(self, probabilities: Sequence[Tensor]) -> dict[str, Tensor]:
        """The probability that a layer is there: Σ p_l over the depths l that reach it."""
        found: dict[str, Tensor] = {}
        for (names, least), p in zip(self.chains, probabilities, strict=True):
            for place, name in enumerate(names):
                found[name] = p[max(0, place + 1 - least) :].sum()
        return found

    def attach(self) -> None:
        """Mix from now on."""
        modules = dict(self._models[0].named_modules())
        for (names, least), logits in zip(self.chains, self.logits, strict=True):
            seen: list[Tensor] = []
            for place, name in enumerate(names):
                hook = self._hook(seen, place, len(names), least, logits)
                self._handles.append(modules[name].register_forward_hook(hook))

    def detach(self) -> None:
        """Stop mixing, without a trace."""
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, seen: list[Tensor], place: int, num: int, least: int, logits: Tensor) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            if place == 0:
                seen[:] = [args[0]]
            seen.append(out)
            if place + 1 < num:
                return None
            reached, best = seen[least:], int(logits.argmax())
            seen.clear()
            if not self._models[0].training:
                return reached[best]
            return torch.einsum("l,l...->...", gumbel(logits, self.temperature).softmax(0), torch.stack(reached))

        return hook


def sizes(num: int, minimum: int, fractions: Sequence[float]) -> list[int]:
    """The candidates, ascending: ⌊f · num + ½⌋ for every fraction f, at least ``minimum``.

    Example:
        >>> sizes(16, 1, (0.3, 0.5, 1.0))
        [5, 8, 16]
    """
    return sorted({max(minimum, int(f * num + 0.5)) for f in (*fractions, 1.0)})


def _first(candidate: int, size: int, num: int) -> Tensor:
    """The matrix (num, num) of CWI from the first ``candidate`` channels to the first ``size``."""
    found = torch.zeros(num, num)
    found[:size, :candidate] = interpolate_channels(torch.eye(candidate), size).T
    return found


def _read_through(weight: Tensor, member: Member, mixing: Tensor) -> Tensor:
    """W′ with W′ x = W (M x) along the dimension that reads the channels, position by position of each."""
    assert member.unit is not None and member.dim is not None  # noqa: S101 PT018 of what reads an axis
    order = torch.argsort(member.unit, stable=True)[int((member.unit < 0).sum()) :].to(weight.device)
    moved = weight.movedim(member.dim, -1)
    read = moved[..., order].reshape(*moved.shape[:-1], len(mixing), -1)
    through = torch.einsum("...uk,uv->...vk", read, mixing.to(weight)).flatten(-2)
    return moved.index_copy(-1, order, through).movedim(-1, member.dim)

"""Exact selection: asked for k, exactly k go, with ties, in a stated order and without sorting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from topiarist.errors import InputError

_INTEGER = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
_WIDTH = 11  # bits decided per pass: two passes for half precision, three for single, six for double
_STEP = (1 << 15) - 1  # scores per step on the CPU: torch starts no threads for fewer than 2¹⁵, and waits for none
_STEP_ELSEWHERE = 1 << 24  # scores per step on other devices, where a step costs a launch


def select(
    scores: Mapping[str, Tensor],
    k: int,
    gone: Mapping[str, Tensor] | None = None,
    keep: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Mark exactly the ``k`` lowest scores over all tensors together.

    The order is (score, position of the tensor in ``scores``, flat index), lowest first: among equal scores the
    earlier tensor goes first, then the lower index; −0.0 equals 0.0. Units of ``gone`` go before all others and count
    towards ``k``; units of ``keep`` never go.

    Few scores are sorted. Of many the k-th is found by a radix select on the bit patterns of the floats (a most-significant-digit radix sort of
    which only the bin holding the k-th element is followed; Knuth, TAOCP 3, 5.2.5), chunk by chunk: the extra memory
    is the returned masks, one byte per score, and a few megabytes that do not grow.

    Args:
        scores: float tensors of any shape; half, bfloat16, single and double may be mixed and lie on any devices.
        k: from the number of units gone to the number of units not kept.
        gone: bool tensors of the shapes of the scores, by name; a name left out has none.
        keep: the same, for units that must stay.

    Returns:
        Per name a bool tensor of the score's shape on its device, True where the unit goes.

    Raises:
        InputError: ``k`` is out of range; scores are not float or hold a NaN; ``gone`` or ``keep`` do not fit them.

    Example:
        >>> select({"a": torch.tensor([0.5, 0.1]), "b": torch.tensor([0.1, 0.1])}, 2)
        {'a': tensor([False,  True]), 'b': tensor([ True, False])}
    """
    gone, keep = gone or {}, keep or {}
    _check(scores, k, gone, keep)
    rank = k - sum(int(g.count_nonzero()) for g in gone.values())
    if rank == 0:
        return {
            name: gone[name].clone() if name in gone else torch.zeros_like(score, dtype=torch.bool)
            for name, score in scores.items()
        }
    if sum(score.numel() for score in scores.values()) <= _STEP:
        return _by_sorting(scores, rank, gone, keep)
    cut = _find_cut({n: s.detach().reshape(-1) for n, s in scores.items()}, rank, gone, keep)
    return _mark(scores, cut, gone, keep)


def ranking(scores: Tensor) -> Tensor:
    """The indices of one tensor in the order in which `select` takes them: int64 ``(num scores,)``, on the CPU.

    Example:
        >>> ranking(torch.tensor([0.5, 0.0, 0.5, -0.0]))
        tensor([1, 3, 0, 2])
    """
    _check({"": scores}, 0, {}, {})
    return torch.argsort(scores.detach().reshape(-1).cpu(), stable=True)


def _by_sorting(
    scores: Mapping[str, Tensor], rank: int, gone: Mapping[str, Tensor], keep: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    dtype = reduce(torch.promote_types, (score.dtype for score in scores.values()))
    flat = torch.cat([score.detach().reshape(-1).to("cpu", dtype) for score in scores.values()])

    def joined(masks: Mapping[str, Tensor]) -> Tensor:
        parts = (masks[n].reshape(-1).cpu() if n in masks else torch.zeros(s.numel(), dtype=torch.bool)
                 for n, s in scores.items())  # fmt: skip
        return torch.cat(list(parts))

    mask, order = joined(gone), torch.argsort(flat, stable=True)
    free = order[~(mask | joined(keep))[order]] if gone or keep else order
    mask[free[:rank]] = True
    parts = mask.split([score.numel() for score in scores.values()])
    return {n: part.view(s.shape).to(s.device, copy=True) for (n, s), part in zip(scores.items(), parts, strict=True)}


@dataclass(frozen=True)
class _Cut:
    """The score at the cut, in the common dtype; of the scores equal to it the first ``num_equal`` go (None: all)."""

    value: float
    dtype: torch.dtype
    num_equal: int | None


def _check(scores: Mapping[str, Tensor], k: int, gone: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> None:
    for name, score in scores.items():
        if score.dtype not in _INTEGER:
            raise InputError(f"scores of {name!r} have dtype {score.dtype}; cast them to one of {[*_INTEGER]}")
        if score.numel() and torch.isnan(torch.aminmax(score.detach()).min):
            raise InputError(f"scores of {name!r} hold a NaN, which has no place in an order; mend the criterion")
    for what, masks in (("gone", gone), ("keep", keep)):
        for name, mask in masks.items():
            if name not in scores or mask.dtype != torch.bool or mask.shape != scores[name].shape:
                found = tuple(scores[name].shape) if name in scores else "no scores"
                raise InputError(f"{what}[{name!r}] is {mask.dtype} of shape {tuple(mask.shape)} for {found}")
    for name in gone.keys() & keep.keys():
        if bool((gone[name] & keep[name]).any()):
            raise InputError(f"units of {name!r} are to be gone and to be kept at once")
    least = sum(int(mask.count_nonzero()) for mask in gone.values())
    most = sum(s.numel() for s in scores.values()) - sum(int(mask.count_nonzero()) for mask in keep.values())
    if not least <= k <= most:
        raise InputError(f"asked to select {k} units, possible is {least} to {most}")


def _find_cut(flats: Mapping[str, Tensor], rank: int, gone: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> _Cut:
    """Follow the ``rank``-th lowest score (from 1) digit by digit; what is left of the rank counts equal scores."""
    dtype = reduce(torch.promote_types, (flat.dtype for flat in flats.values()))
    prefix, shift = None, torch.finfo(dtype).bits
    while shift:
        width = min(_WIDTH, shift)
        shift -= width
        counts = torch.zeros(1 << width, dtype=torch.int64)
        for name, flat in flats.items():
            for part in _candidates(flat, gone.get(name), keep.get(name)):
                counts += _count_digits(part.to(dtype), width, shift, prefix)
        order = _digit_order(width, prefix)
        below = counts[order].cumsum(0)
        place = int(torch.searchsorted(below, rank))
        rank -= int(below[place - 1]) if place else 0
        digit = int(order[place])
        signed = digit - (1 << width) if digit >> (width - 1) else digit
        prefix = signed if prefix is None else (prefix << width) | digit
    value = torch.tensor(prefix, dtype=_INTEGER[dtype]).view(dtype).item()
    return _Cut(value, dtype, None if rank == int(counts[digit]) else rank)


def _steps(flat: Tensor) -> Iterator[slice]:
    step = _STEP if flat.device.type == "cpu" else _STEP_ELSEWHERE
    return (slice(start, start + step) for start in range(0, flat.numel(), step))


def _candidates(flat: Tensor, gone: Tensor | None, keep: Tensor | None) -> Iterator[Tensor]:
    """The scores that are neither gone nor kept, some at a time."""
    fixed = [mask.reshape(-1) for mask in (gone, keep) if mask is not None]
    for step in _steps(flat):
        yield flat[step][~reduce(torch.logical_or, (mask[step] for mask in fixed))] if fixed else flat[step]


def _count_digits(part: Tensor, width: int, shift: int, prefix: int | None) -> Tensor:
    """How often each digit occurs at ``shift`` where the bit pattern begins with ``prefix``: (bins,) on the CPU."""
    bits = (part + 0.0).view(_INTEGER[part.dtype])  # + 0.0 makes −0.0 the pattern of 0.0
    if bits.dtype == torch.int16:
        bits = bits.to(torch.int32)
    if prefix is not None:
        bits = bits[(bits >> (shift + width)) == prefix]
    digits = (bits >> shift).bitwise_and_((1 << width) - 1)
    return torch.bincount(digits, minlength=1 << width).cpu()


def _digit_order(width: int, prefix: int | None) -> Tensor:
    """Digits from the lowest float to the highest: magnitudes descend where the sign bit is set."""
    digits = torch.arange(1 << width)
    if prefix is None:
        negative, positive = digits.tensor_split(2)[::-1]
        return torch.cat([negative.flip(0), positive])
    return digits.flip(0) if prefix < 0 else digits


def _mark(
    scores: Mapping[str, Tensor], cut: _Cut, gone: Mapping[str, Tensor], keep: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    masks = {}
    num_left = cut.num_equal
    for name, score in scores.items():
        flat = score.detach().reshape(-1)
        mask = torch.empty(flat.shape, dtype=torch.bool, device=flat.device)
        never = [m[name].reshape(-1) for m in (gone, keep) if name in m]
        for step in _steps(flat):
            part = flat[step].to(cut.dtype)
            (torch.le if num_left is None else torch.lt)(part, cut.value, out=mask[step])
            if num_left:
                equal = part == cut.value
                for other in never:
                    equal.masked_fill_(other[step], False)
                first = equal.nonzero()[:num_left]
                mask[step][first] = True
                num_left -= first.numel()
        if name in keep:
            mask.masked_fill_(keep[name].reshape(-1), False)
        if name in gone:
            mask.masked_fill_(gone[name].reshape(-1), True)
        masks[name] = mask.view(score.shape)
    return masks

"""Rules of operators: what each says of an axis, held against torch itself, and what happens where there is none."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topiarist.errors import InputError, TraceError
from topiarist.graph import rule, trace
from topiarist.graph.explain import status
from topiarist.graph.rules import RULES
from topiarist.graph.rules.pointwise import KEEPS_ZERO
from topiarist.testing.invariants import check_agreement, check_bill, check_symmetry, cut_axes
from topiarist.testing.zoo import Net, build

aten = torch.ops.aten

# ----------------------------------------------------------------------------------------- zeros, operator by operator


def calls(name):
    """Arguments for the first overload of an operator that takes tensors, numbers and flags: (overload, filled)."""
    packet = getattr(aten, name)
    for overload in packet.overloads():
        arguments = [a for a in getattr(packet, overload)._schema.arguments if not a.has_default_value()]
        kinds = [str(a.type) for a in arguments]
        if "out" not in overload and all(kind in FILL for kind in kinds) and "Tensor" in kinds:
            yield getattr(packet, overload), [a.name for a in arguments], kinds


FILL = {"Tensor": None, "Scalar": 2, "float": 0.5, "number": 2, "Optional[float]": 0.5, "bool": True, "int": 1}
FILL["Optional[bool]"] = True
INTEGERS = ("bitwise",)


def zero_where(name, zeroed):
    """Whether the operator gives zero where the tensors at the places ``zeroed`` are zero (all, if None)."""
    for overload, names, kinds in calls(name):
        tensors = [k for k in kinds if k == "Tensor"]
        if zeroed is not None and max(zeroed, default=0) >= len(tensors):
            continue
        made, place, filled = torch.Generator().manual_seed(0), 0, {}
        for argument, kind in zip(names, kinds, strict=True):
            value = FILL[kind]
            if kind == "Tensor":
                value = torch.rand(64, generator=made) + 0.5
                value = value.int() + 1 if name.startswith(INTEGERS) else value
                value = torch.complex(value, value) if name == "_conj" else value
                value = torch.zeros_like(value) if zeroed is None or place in zeroed else value
                place += 1
            filled[argument] = value
        out = overload(**filled)
        out = out if isinstance(out, torch.Tensor) else out[0]
        return bool((out == 0).all())
    return None


@pytest.mark.parametrize("name", [n for n in KEEPS_ZERO if hasattr(aten, n)])
def test_zeros_stay_where_a_rule_says_so(name):
    keeps = KEEPS_ZERO[name]
    if keeps is False:
        return  # says nothing, and is never wrong
    places = {True: [None], "all": [None], "first": [(0,)], "any": [(0,), (1,)]}[keeps]
    assert [zero_where(name, zeroed) for zeroed in places] == [True] * len(places)


@pytest.mark.parametrize("name", ["cos", "exp", "sigmoid", "log", "reciprocal", "atan2", "softplus", "rsqrt"])
def test_operators_that_make_something_of_zero_are_not_said_to_keep_it(name):
    assert zero_where(name, None) is False or name == "atan2"
    assert KEEPS_ZERO[name] is False


# -------------------------------------------------------------------------------- operators between two linear layers
# Each entry: the code on h of shape (2, 6, 8), what it reads from the model, and the fate of the axis of 8.

FREE, INEXACT, PINNED = "free", "inexact", "pinned"


def parameter(*shape):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))))


def image(h):
    """(batch, places, channels) as an image of 2 × 3 places."""
    return h.transpose(1, 2).unflatten(2, (2, 3))


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)

    @torch.jit.script
    def gated(h: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return torch.relu(h * g)


G = {"g": parameter(8)}
CASES = {
    # pointwise
    "add": (lambda m, h: h + m.g, G, FREE),
    "broadcast both ways": (lambda m, h: h.sum(-1, keepdim=True) * m.g + m.g[None], G, FREE),
    "multiply then sum": (lambda m, h: h + (h * m.g).sum(-1, keepdim=True), G, FREE),
    "add a number then sum": (lambda m, h: h + (h + 1).sum(-1, keepdim=True), {}, INEXACT),
    "exp then sum": (lambda m, h: h + h.exp().sum(-1, keepdim=True), {}, INEXACT),
    "tanh then sum": (lambda m, h: h + h.tanh().sum(-1, keepdim=True), {}, FREE),
    "add a broadcast value then sum": (lambda m, h: h + (h + h[..., :1]).sum(-1, keepdim=True), {}, INEXACT),
    "clamp over zero then sum": (lambda m, h: h + h.clamp(-1, 2).sum(-1, keepdim=True), {}, FREE),
    "clamp above zero then sum": (lambda m, h: h + h.clamp(min=0.5).sum(-1, keepdim=True), {}, INEXACT),
    "clamp at most then sum": (lambda m, h: h + h.clamp_max(0.5).sum(-1, keepdim=True), {}, FREE),
    "clamp by tensors": (lambda m, h: h.clamp(-m.g.abs(), m.g.abs()), G, FREE),
    "hardtanh": (lambda m, h: h + F.hardtanh(h).sum(-1, keepdim=True), {}, FREE),
    "hardtanh away from zero": (lambda m, h: h + F.hardtanh(h, 1.0, 2.0).sum(-1, keepdim=True), {}, INEXACT),
    "relu6": (lambda m, h: h + F.relu6(h).sum(-1, keepdim=True), {}, FREE),
    "where, a number": (lambda m, h: torch.where(h > 0, h, 0.5), {}, FREE),
    "where, zeros then sum": (lambda m, h: h + torch.where(h > 1, h, h * 0).sum(-1, True), {}, FREE),
    "where, a number then sum": (lambda m, h: h + torch.where(h > 0, h, 0.5).sum(-1, True), {}, INEXACT),
    "where, a tensor of one then sum": (
        lambda m, h: h + torch.where(h > 0, h, torch.tensor(0.5, dtype=h.dtype)).sum(-1, True), {}, INEXACT,
    ),
    "where, a wider condition": (lambda m, h: h * torch.where(m.g > 0, 1.0, 0.5), G, FREE),
    "masked_fill": (lambda m, h: h.masked_fill(h > 1, 0.0).sum(-1, True) + h, {}, FREE),
    "masked_fill of another value then sum": (lambda m, h: h.masked_fill(h > 1, 3.0).sum(-1, True) + h, {}, INEXACT),
    "a square": (lambda m, h: h + (h**2).sum(-1, True), {}, FREE),
    "an inverse square": (lambda m, h: h * m.g**-2, G, INEXACT),
    "logarithm of a zero": (lambda m, h: (h * m.g).abs().log(), G, INEXACT),
    "logarithm of no zero": (lambda m, h: (h.abs() + 1).log(), {}, FREE),
    "divide by a zero": (lambda m, h: 1 / (h * m.g), G, INEXACT),
    "divide a zero": (lambda m, h: h / (m.g.abs() + 1), G, FREE),
    "addcmul": (lambda m, h: torch.addcmul(h, h, m.g) + torch.addcdiv(h, h, m.g.abs() + 1), G, FREE),
    "addcdiv by a zero": (lambda m, h: torch.addcdiv(h, h, m.g), G, INEXACT),
    "lerp": (lambda m, h: torch.lerp(h, m.g.expand_as(h), 0.3), G, FREE),
    "maximum": (lambda m, h: torch.maximum(h, m.g) + torch.max(h, m.g), G, FREE),
    "comparison": (lambda m, h: h * (h > m.g), G, FREE),
    "logical": (lambda m, h: h * ((h > 0) & ~(h > m.g)), G, FREE),
    "prelu": (lambda m, h: F.prelu(h.transpose(1, 2), m.g).transpose(1, 2), G, FREE),
    "dropout": (lambda m, h: F.dropout(h, 0.3, m.training), {}, FREE),
    "to another type": (lambda m, h: h.to(torch.float32).to(h.dtype), {}, None),
    "in place": (lambda m, h: h.clone().add_(m.g).mul_(2).relu_(), G, FREE),
    "a copy into zeros": (lambda m, h: torch.zeros_like(h).copy_(h), {}, FREE),
    # reductions
    "sum": (lambda m, h: h + h.sum(-1, keepdim=True) + h.sum((1, 2))[:, None, None] + h.sum(), {}, FREE),
    "mean": (lambda m, h: h + h.mean(-1, keepdim=True), {}, INEXACT),
    "mean beside it": (lambda m, h: h + h.mean(1, keepdim=True), {}, FREE),
    "maximum over it": (lambda m, h: h + h.amax(-1, keepdim=True), {}, INEXACT),
    "max with indices": (lambda m, h: h + h.max(2)[0][..., None], {}, INEXACT),
    "all of it": (lambda m, h: h - h.max(), {}, INEXACT),
    "variance": (lambda m, h: h / (h.var(-1, keepdim=True) + 1), {}, INEXACT),
    "standard deviation and mean": (lambda m, h: h - torch.std_mean(h, -1)[1][..., None], {}, INEXACT),
    "norm": (lambda m, h: h / (h.norm(dim=-1, keepdim=True) + 1), {}, FREE),
    "normalize": (lambda m, h: F.normalize(h, dim=-1), {}, FREE),
    "vector norm": (lambda m, h: h / (torch.linalg.vector_norm(h, 3, dim=(1, 2), keepdim=True) + 1), {}, FREE),
    "softmax over it": (lambda m, h: h.softmax(-1), {}, INEXACT),
    "softmax beside it": (lambda m, h: h.softmax(1), {}, FREE),
    "log_softmax": (lambda m, h: F.log_softmax(h, 2), {}, INEXACT),
    "logsumexp": (lambda m, h: h + h.logsumexp(-1, keepdim=True), {}, INEXACT),
    "product of all": (lambda m, h: h + h.prod(-1, keepdim=True), {}, INEXACT),
    "any": (lambda m, h: h * (h > 0).any(-1, keepdim=True), {}, INEXACT),
    "topk beside it": (lambda m, h: h.topk(3, 1)[0].repeat(1, 2, 1), {}, FREE),
    "topk beside it, by keyword": (lambda m, h: torch.topk(h, k=6, dim=1, largest=False)[0], {}, FREE),
    "topk of it": (lambda m, h: h + h.topk(2)[0].sum(-1, True), {}, PINNED),
    "sort beside it": (lambda m, h: h.sort(1)[0] + h.sort(dim=1, descending=True, stable=True)[0], {}, FREE),
    "sort of it": (lambda m, h: h.sort(-1)[0], {}, PINNED),
    "kthvalue": (lambda m, h: h + h.kthvalue(2, 1)[0][:, None] + h.kthvalue(2, 1, True)[0], {}, FREE),
    # contractions
    "matmul": (lambda m, h: h @ m.w, {"w": parameter(8, 8)}, None),
    "a quadratic form": (lambda m, h: h + (h @ (m.w @ m.w.T) * h).sum(-1, True), {"w": parameter(8, 5)}, FREE),
    "bmm": (lambda m, h: torch.bmm(torch.bmm(h, h.transpose(1, 2)), h), {}, FREE),
    "baddbmm": (lambda m, h: torch.baddbmm(h, h @ h.mT, h, alpha=0.5), {}, FREE),
    "einsum": (lambda m, h: torch.einsum("bnc,bmc,bmd->bnd", h, h, h), {}, FREE),
    "tensordot": (lambda m, h: h + torch.tensordot(h, m.g, dims=([2], [0]))[..., None], G, FREE),
    "outer": (lambda m, h: h + h[0, 0] @ torch.outer(m.g, m.g), G, FREE),
    "mv and dot": (lambda m, h: h + torch.mv(h[0], m.g)[:, None] + torch.dot(m.g, m.g), G, FREE),
    "addmv": (lambda m, h: h + torch.addmv(h[0, :, 0], h[1], m.g)[:, None], G, None),
    "attention": (lambda m, h: F.scaled_dot_product_attention(h, h, h, scale=0.5), {}, FREE),
    "attention with a default scale": (lambda m, h: F.scaled_dot_product_attention(h, h, h), {}, PINNED),
    "attention with the scale in its place": (
        lambda m, h: F.scaled_dot_product_attention(h, h, h, None, 0.0, False, scale=0.5), {}, FREE,
    ),
    "attention over another value": (
        lambda m, h: h + F.scaled_dot_product_attention(m.q(h), m.k(h), h, scale=0.5),
        {"q": nn.Linear(8, 4), "k": nn.Linear(8, 4)}, FREE,
    ),
    # shapes
    "permute": (lambda m, h: h.permute(2, 0, 1).movedim(0, -1) + h.mT.mT + h.transpose(0, 1).swapaxes(0, 1), {}, FREE),
    "squeeze": (lambda m, h: h[:, None].squeeze(1) + h[..., None].squeeze() + h.unsqueeze(0).squeeze((0,)), {}, FREE),
    "flatten and back": (lambda m, h: h.flatten(0, 1).view(2, 6, -1), {}, FREE),
    "flatten with features": (lambda m, h: (h.flatten(1) * m.g.repeat(6)).view(2, 6, -1), G, None),
    "cat": (lambda m, h: torch.cat([h, h * 2], 1) + torch.cat([m.g[None], m.g[None]]).sum(0), G, FREE),
    "stack": (lambda m, h: torch.stack([h, h * m.g], 1).sum(1), G, FREE),
    "unbind of others": (lambda m, h: torch.stack([t * m.g for t in h.unbind(1)], 1), G, FREE),
    "unbind": (lambda m, h: torch.stack(h.unbind(-1), -1), {}, PINNED),
    "iteration": (lambda m, h: torch.stack([t * m.g for t in h]), G, FREE),
    "an index of it": (lambda m, h: h + h[..., 3][..., None], {}, PINNED),
    "every second": (lambda m, h: h[..., ::2].repeat(1, 1, 2), {}, PINNED),
    "every second of others": (lambda m, h: h[:, ::2].repeat(1, 2, 1), {}, FREE),
    "flip": (lambda m, h: h.flip(-1), {}, PINNED),
    "roll of others": (lambda m, h: h.roll(2, 1), {}, FREE),
    "roll": (lambda m, h: h.roll(2, -1), {}, PINNED),
    "tril": (lambda m, h: h.tril(), {}, PINNED),
    "expand beside it": (lambda m, h: h + m.g.expand(2, 6, -1), G, FREE),
    "repeat beside it": (lambda m, h: h + m.g.repeat(6, 1), G, FREE),
    "glu": (lambda m, h: F.glu(h, -1).repeat(1, 1, 2), {}, None),
    "pad beside it": (lambda m, h: F.pad(h, (0, 0, 1, 0))[:, :-1] + F.pad(h, (0, 0, -1, 1)), {}, FREE),
    "circular padding": (lambda m, h: F.pad(h.mT, (1, 1), mode="circular").mT[:, 1:-1], {}, FREE),
    "unfold": (lambda m, h: h.unfold(1, 2, 1).sum(-1), {}, None),
    # indexing
    "embedding": (lambda m, h: h + m.table(torch.arange(6)), {"table": nn.Embedding(7, 8)}, FREE),
    "rows by a table": (lambda m, h: h[:, m.t] + h.index_select(1, m.t), {"t": torch.tensor([1, 0, 2, 5, 4, 3])}, FREE),
    "features by a table": (lambda m, h: h[..., m.t], {"t": torch.tensor([1, 0, 2, 5, 4, 3, 7, 6])}, PINNED),
    "two tables": (lambda m, h: h + h[m.t, m.t][0], {"t": torch.tensor([1, 0])}, FREE),
    "a table on both sides": (lambda m, h: h + h[m.t, :, m.t].sum(), {"t": torch.tensor([1, 0])}, PINNED),
    "a mask": (lambda m, h: h + h[h[..., 0] > -9].mean(0), {}, PINNED),
    "gather beside it": (lambda m, h: h.gather(1, h.argsort(1)), {}, FREE),
    "gather along it": (lambda m, h: h.gather(-1, h.argsort(-1)), {}, PINNED),
    # norms
    "batch norm": (lambda m, h: m.norm(h.mT).mT, {"norm": nn.BatchNorm1d(8)}, FREE),
    "batch norm without weights then sum": (
        lambda m, h: h + m.norm(h.mT).mT.sum(-1, True), {"norm": nn.BatchNorm1d(8, affine=False)}, INEXACT,
    ),
    "batch norm without statistics": (
        lambda m, h: m.norm(h.mT).mT, {"norm": nn.BatchNorm1d(8, track_running_stats=False)}, FREE,
    ),
    "a standardised weight": (
        lambda m, h: F.linear(h, F.batch_norm(m.w[None], None, None, training=True)[0]),
        {"w": parameter(8, 8)}, INEXACT,
    ),
    "layer norm": (lambda m, h: m.norm(h), {"norm": nn.LayerNorm(8)}, INEXACT),
    "layer norm beside it": (lambda m, h: m.norm(h.mT).mT, {"norm": nn.LayerNorm(6)}, FREE),
    "layer norm without weights": (lambda m, h: m.norm(h), {"norm": nn.LayerNorm(8, 1e-5, False)}, INEXACT),
    "rms norm": (lambda m, h: m.norm(h), {"norm": nn.RMSNorm(8)}, INEXACT),
    "group norm": (lambda m, h: m.norm(h.mT).mT, {"norm": nn.GroupNorm(2, 8)}, None),
    "group norm of one": (lambda m, h: m.norm(h.mT).mT, {"norm": nn.GroupNorm(8, 8)}, FREE),
    "instance norm": (lambda m, h: m.norm(h.mT).mT, {"norm": nn.InstanceNorm1d(8, affine=True)}, FREE),
    "local response": (lambda m, h: F.local_response_norm(h.mT, 2).mT, {}, PINNED),
    # images
    "conv": (lambda m, h: m.conv(h.mT).mT, {"conv": nn.Conv1d(8, 8, 3, padding="same")}, FREE),
    "conv along features": (lambda m, h: m.conv(h), {"conv": nn.Conv1d(6, 6, 3, padding=1)}, PINNED),
    "max pool": (lambda m, h: F.max_pool1d(h.mT, 2).mT, {}, FREE),
    "pool over features": (lambda m, h: F.avg_pool1d(h, 3, 1, 1), {}, PINNED),
    "adaptive pool": (lambda m, h: F.adaptive_max_pool1d(h.mT, 3).mT, {}, FREE),
    "interpolate": (lambda m, h: F.interpolate(h.mT, 12, mode="linear").mT, {}, FREE),
    "interpolate features": (lambda m, h: F.interpolate(h, 8, mode="linear"), {}, PINNED),
    # windows, distances, Fourier transforms
    "windows": (lambda m, h: h.unfold(1, 3, 2).mean(-1).mean(1, keepdim=True) + h, {}, FREE),
    "windows along it": (lambda m, h: h.unfold(2, 2, 2).flatten(2), {}, PINNED),
    "unfold and fold an image": (
        lambda m, h: F.fold(F.unfold(image(h), 2, padding=1), (2, 3), 2, padding=1).flatten(2).transpose(1, 2), {},
        FREE,
    ),
    "sampled at places": (
        lambda m, h: F.grid_sample(image(h), m.t, align_corners=False).flatten(2).transpose(1, 2),
        {"t": torch.linspace(-0.5, 0.5, 24).view(2, 2, 3, 2)}, FREE,
    ),
    "distances": (lambda m, h: h + torch.cdist(h, h * m.g).mean(-1, keepdim=True), G, FREE),
    "distances to no zero": (lambda m, h: h + torch.cdist(h, h.cos()).mean(-1, keepdim=True), {}, INEXACT),
    "a Fourier transform beside it": (lambda m, h: torch.fft.ifft(torch.fft.fft(h, dim=1), dim=1).real, {}, FREE),
    "a real Fourier transform beside it": (lambda m, h: torch.fft.irfft(torch.fft.rfft(h, dim=1), 6, dim=1), {}, FREE),
    "a Fourier transform": (lambda m, h: torch.fft.fft(h).real, {}, PINNED),
    "complex numbers": (lambda m, h: torch.view_as_real(torch.complex(h, h * m.g)).sum(-1), G, FREE),
    "complex numbers in polar form": (lambda m, h: torch.view_as_complex(torch.stack((h, h), -1)).imag * m.g, G, FREE),
    # scripted code and mapped functions
    "a scripted function": (lambda m, h: gated(h, m.g), G, FREE),
    "a function mapped over examples": (lambda m, h: torch.vmap(lambda row: row * 2)(h), {}, FREE),
    # where a tensor lies
    "another way on the meta device": (lambda m, h: h * h.mean() if h.is_meta else h * 2, {}, FREE),
    "another way off the CPU": (lambda m, h: h * 2 if h.is_cpu else h * h.mean(), {}, FREE),
    # tensors in lists and dicts are constants
    "a table in a list": (lambda m, h: h + m.tables[0], {"tables": [torch.ones(8)]}, PINNED),
    "a table in a dict": (lambda m, h: h * m.tables["one"], {"tables": {"one": torch.ones(1, 8)}}, PINNED),
    # what counts values
    "a histogram": (lambda m, h: h / torch.histc(h, 4).sum(), {}, PINNED),
    "what there is": (lambda m, h: h / len(torch.unique(h)), {}, PINNED),
    # what has no rule
    "no rule": (lambda m, h: torch.renorm(h, 2, 2, 1.0), {}, PINNED),
    "no rule in place": (lambda m, h: h.clone().index_fill_(2, m.t, 0.0), {"t": torch.tensor([1])}, PINNED),
    "scatter": (lambda m, h: h.scatter(1, m.t, 1.0), {"t": torch.zeros(2, 1, 8, dtype=torch.long)}, PINNED),
    "as_strided": (lambda m, h: h.contiguous().as_strided((2, 6, 8), (48, 8, 1)), {}, PINNED),
    "through numpy": (lambda m, h: h + torch.as_tensor(h.numpy(force=True)), {}, PINNED),
    "data": (lambda m, h: h + h.data, {}, FREE),
}  # fmt: skip


def between(code, parts, num_out=8):
    return Net(lambda m, x: m.last(code(m, m.first(x))), first=nn.Linear(5, 8), last=nn.Linear(num_out, 4), **parts)


@pytest.mark.parametrize("name", CASES)
def test_rules(name):
    code, parts, expected = CASES[name]
    model, inputs = between(code, parts), torch.randn(2, 6, 5)
    with torch.random.fork_rng():
        axes = trace(model, inputs)
    of_first = [axis for axis in axes.axes if any((m.tensor, m.dim) == ("first.weight", 0) for m in axis.members)]
    if expected is not None:
        assert [status(axis) for axis in of_first] == [expected], axes.summary()
    assert not [r for a in axes.axes for r in a.pins if "does not hold" in r or "cannot be read" in r], axes.summary()
    assert axes.training_error is None
    for axis in (axis for axis in axes.axes if not axis.pins):
        check_symmetry(model, axes, axis.name, inputs)
        gone = torch.arange(axis.size) % 2 == 1
        cut = cut_axes(model, axes, {axis.name: gone})
        check_agreement(cut.exact(), inputs)
        check_bill(axes, {axis.name: gone}, cut.small, inputs)


# ------------------------------------------------------------------------------------------------ ties across a model


def ties(axes, name):
    return {f"{member.tensor}:{member.dim}" for member in axes[name].members}


def test_a_residual_sum_ties_all_that_meets_in_it():
    axes = trace(*build("resnet_option_b"))
    assert ties(axes, "0.weight:0") == {
        "0.weight:0", "0.bias:0", "1.weight:0", "1.bias:0", "1.running_mean:0", "1.running_var:0",
        "3.conv1.weight:1", "3.conv2.weight:0", "3.bn2.weight:0", "3.bn2.bias:0", "3.bn2.running_mean:0",
        "3.bn2.running_var:0", "4.conv1.weight:1", "4.shortcut.0.weight:1",
    }  # fmt: skip


def test_padded_channels_are_a_part_of_the_wider_axis():
    axes = trace(*build("pad_channels"))
    parts = [axis for axis in axes.axes if "second.weight:0" in ties(axes, axis.name)]
    assert [axis.size for axis in parts] == [4, 2, 4]
    assert "first.weight:0" in ties(axes, next(a.name for a in parts if "first.weight:0" in ties(axes, a.name)))


def test_heads_are_found_by_what_is_done_with_them():
    for name in ("vit", "separate_qkv", "einsum_attention", "attention_with_bias_table"):
        axes = trace(*build(name))
        heads = [axis for axis in axes.axes if axis.is_head and not axis.pins]
        assert heads, name
        assert {axis.size for axis in heads} == {3}


def test_tied_tensors_are_one():
    axes = trace(*build("tied_embedding"))
    assert axes.tensors["output.weight"].tied_to == "table.weight"
    assert axes.num_params() == sum(p.numel() for p in build("tied_embedding")[0].parameters())


def test_what_is_never_reached_is_pinned():
    model = Net(lambda m, x: m.a(x), a=nn.Linear(5, 4), unused=nn.Linear(7, 8))
    axes = trace(model, torch.zeros(2, 5))
    assert all("is not reached" in axes[f"unused.weight:{dim}"].pins[0] for dim in (0, 1))


def test_weights_are_what_multiplies_activations():
    assert trace(*build("vit")).weights() == [
        "patch_embed.weight",
        *(f"blocks.{i}.{n}.weight" for i in (0, 1) for n in ("attn.qkv", "attn.proj", "fc1", "fc2")),
        "head.weight",
    ]


def test_multiply_accumulates_by_weight_are_those_of_the_formulas():
    by_tensor = trace(*build("lenet")).macs_by_tensor()
    assert by_tensor == {"0.weight": 2 * 4 * 9 * 80, "3.weight": 2 * 6 * 4 * 9 * 6, "6.weight": 720, "8.weight": 100}


def test_shares_add_up_to_what_hangs_on_each_axis():
    axes = trace(*build("mlp"))
    assert axes.share(axes["0.weight:0"]) == pytest.approx((60 + 10 + 80) / axes.num_params())


def summary(model, inputs):
    return trace(model, inputs).summary()


@pytest.mark.parametrize("name", ["vit", "resnet_option_a", "glu_by_chunk"])
def test_a_model_without_data_is_traced_alike(name):
    model, inputs = build(name)
    expected = summary(model, inputs)
    assert summary(model.to("meta"), torch.empty_like(inputs, device="meta")) == expected


def test_half_precision_is_traced_alike():
    model, inputs = build("vgg_bn")
    expected = summary(model, inputs)
    assert summary(model.bfloat16(), inputs.bfloat16()) == expected


def test_the_trace_is_the_same_twice():
    model, inputs = build("shared_config")
    assert summary(model, inputs) == summary(model, inputs)


def test_gradients_and_inference_mode_of_the_caller_do_not_matter():
    model, inputs = build("lenet")
    expected = summary(model, inputs)
    with torch.inference_mode():
        assert summary(model, inputs) == expected


def test_a_branch_on_data_is_followed_on_real_tensors_and_costs_once():
    model, inputs = build("data_dependent")
    axes = trace(model, inputs)
    assert axes.free == ["first.weight:0"]
    assert axes.num_macs() == 3 * (6 * 10 + 10 * 4)


# ----------------------------------------------------------------------- nobody outside keeps a tensor of the trace


class Table:
    kept = None


TABLES = {}


@functools.lru_cache
def table_by_function(size, device):
    return torch.arange(size, device=device).float()


@functools.cache
def table_in_a_tuple(size, device):
    return torch.arange(size, device=device).float(), size


def table_in_a_dict(size, device):
    if size not in TABLES:
        TABLES[size] = torch.arange(size, device=device).float()
    return TABLES[size]


def table_in_a_class(size, device):
    if Table.kept is None:
        Table.kept = torch.arange(size, device=device).float()
    return Table.kept


def tabled(make, *, on_real):
    def forward(m, x):
        hidden = m.a(x) * make(x.shape[0], x.device)[:, None]
        return m.b(hidden) * (float(x.new_ones(1).sum()) if on_real else 1.0)

    return Net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 4)), torch.randn(3, 5)


@pytest.fixture
def _empty_tables():
    yield
    Table.kept = None
    TABLES.clear()
    table_by_function.cache_clear()
    table_in_a_tuple.cache_clear()


@pytest.mark.usefixtures("_empty_tables")
@pytest.mark.parametrize("on_real", [False, True])
@pytest.mark.parametrize("make", [table_by_function, lambda *a: table_in_a_tuple(*a)[0], table_in_a_dict])
def test_caches_that_a_trace_fills_are_emptied(make, on_real):
    model, inputs = tabled(make, on_real=on_real)
    assert trace(model, inputs).free == ["a.weight:0"]
    found = model(inputs)
    assert type(found) is torch.Tensor
    assert found.device.type == "cpu"
    assert torch.equal(found, model.b(model.a(inputs) * torch.arange(3.0)[:, None]))


@pytest.mark.usefixtures("_empty_tables")
def test_caches_that_are_full_stay():
    model, inputs = tabled(table_in_a_dict, on_real=False)
    model(inputs)
    kept = TABLES[3]
    trace(model, inputs)
    assert TABLES[3] is kept


@pytest.mark.usefixtures("_empty_tables")
def test_an_attribute_that_a_trace_fills_is_emptied_with_a_warning():
    model, inputs = tabled(table_in_a_class, on_real=False)
    with pytest.warns(UserWarning, match=r"Table\.kept kept a tensor of the trace.*call the model once"):
        trace(model, inputs)
    assert model(inputs).device.type == "cpu"


def test_hooks_that_record_are_left_without_tensors_of_the_trace():
    model, inputs = build("mlp")
    seen = []
    model[0].register_forward_hook(lambda module, args, out: seen.append(out))
    trace(model, inputs)
    assert seen == []
    model(inputs)
    assert len(seen) == 1


def test_sizes_that_somebody_kept_say_nothing_any_more():
    kept = []

    def forward(m, x):
        kept.append(m.a.weight.shape[0])
        return m.b(m.a(x))

    axes = trace(Net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 4)), torch.zeros(2, 5))
    observer = kept[0].observer
    before = len(observer.constraints)
    assert kept[0] == 8
    assert float(kept[0]) == 8.0
    assert len(observer.constraints) == before
    assert axes.free == ["a.weight:0"]


# -------------------------------------------------------------------------------------------- no rule, and a new rule


@torch.library.custom_op("topiarist_tests::mirrored", mutates_args=())
def mirrored(x: torch.Tensor) -> torch.Tensor:
    return -x


@mirrored.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@pytest.fixture
def mirror():
    model = Net(lambda m, x: m.b(mirrored(m.a(x))), a=nn.Linear(5, 8), b=nn.Linear(8, 4))
    yield model.requires_grad_(False), torch.zeros(3, 5)
    RULES.pop(torch.ops.topiarist_tests.mirrored, None)


def test_an_operator_without_a_rule_pins_and_is_listed_with_its_line(mirror):
    axes = trace(*mirror)
    assert axes.free == []
    (where,) = axes.unknown_operators.values()
    assert list(axes.unknown_operators) == ["topiarist_tests.mirrored"]
    assert where.startswith("tests/test_graph_rules.py:")
    assert "no rule for the operator topiarist_tests.mirrored" in axes.explain("a.weight:0")
    assert "@topiarist.graph.rule" in axes.explain("a.weight:0")
    assert "topiarist_tests.mirrored, first at tests/test_graph_rules.py" in axes.summary()


def test_a_rule_from_outside_frees_the_axis(mirror):
    @rule(torch.ops.topiarist_tests.mirrored)
    def _mirrored(trace, out, x):
        trace.put(out, trace[x].axes, trace[x].zero)

    axes = trace(*mirror)
    assert axes.free == ["a.weight:0"]
    assert axes.unknown_operators == {}


@pytest.mark.parametrize("wrong", ["raises", "sizes", "arguments"])
def test_a_rule_that_does_not_hold_pins_and_is_named(mirror, wrong):
    if wrong == "arguments":
        rule(torch.ops.topiarist_tests.mirrored)(lambda trace, out: None)
    else:

        @rule(torch.ops.topiarist_tests.mirrored)
        def _mirrored(trace, out, x):
            if wrong == "raises":
                raise KeyError("missing")
            trace.put(out, trace[x].axes[::-1])

    axes = trace(*mirror)
    assert axes.free == []
    assert "in its rule" in next(iter(axes.unknown_operators))
    assert "the rule of the operator topiarist_tests.mirrored" in axes.explain("a.weight:0")
    assert "does not hold, at tests/test_graph_rules.py" in axes.explain("a.weight:0")


def test_two_rules_for_one_operator_are_refused():
    with pytest.raises(ValueError, match="has a rule already"):
        rule(aten.mm)(lambda trace, out, a, b: None)


# ------------------------------------------------------------------------------------------------- asking, and errors


@pytest.mark.parametrize("name", ["blocks.0.attn.qkv.weight", "blocks.0.attn", "head.weight:1"])
def test_explain_takes_axes_tensors_and_modules(name):
    assert "lives in" in trace(*build("vit")).explain(name)


@pytest.mark.parametrize("ask", [lambda axes: axes.explain("blocks.0.atn"), lambda axes: axes["blocks.0.atn"]])
def test_names_that_match_nothing_name_the_nearest(ask):
    with pytest.raises(InputError, match=r"nearest: .*blocks\.0\.attn"):
        ask(trace(*build("vit")))


def test_what_is_kept_is_what_modules_return():
    axes = trace(*build("mlp"))
    assert axes.kept_by(["0"]) == {axes["0.weight:0"].leaf} | {leaf for leaf in axes.kept_by(["0"]) if leaf.pins}
    with pytest.raises(InputError, match="matches no module"):
        axes.kept_by(["nothing.*"])


def test_a_model_that_fails_in_training_mode_only_is_still_traced():
    def forward(m, x):
        if m.training:
            raise RuntimeError("no training here")
        return m.b(m.a(x))

    axes = trace(Net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 4)), torch.zeros(2, 5))
    assert axes.free == ["a.weight:0"]
    assert "no training here" in str(axes.training_error)


def test_what_a_training_run_reached_before_it_failed_is_pinned():
    """The auxiliary head reads the hidden features, and what reads the auxiliary head is never seen."""

    def forward(m, x):
        hidden = m.a(x)
        if m.training:
            m.tail(m.aux(hidden).view(3, 1000))
        return m.b(hidden)

    parts = {"a": nn.Linear(5, 8), "b": nn.Linear(8, 4), "aux": nn.Linear(8, 6), "tail": nn.Linear(6, 4)}
    axes = trace(Net(forward, **parts), torch.zeros(3, 5))
    assert axes.free == []
    assert "used in training mode, which does not run" in axes.explain("aux.weight:0")


def test_a_model_that_does_not_run_is_an_error_with_shapes_and_devices():
    with pytest.raises(TraceError, match=r"shapes \(3, 7\), devices cpu.*check that model") as error:
        trace(nn.Linear(5, 4), torch.zeros(3, 7))
    assert isinstance(error.value.__cause__, RuntimeError)


def test_only_modules_are_traced():
    with pytest.raises(InputError, match=r"takes a torch\.nn\.Module, got function"):
        trace(lambda x: x, torch.zeros(1))


def test_no_warning_is_raised():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(*build("transformer_encoder"))

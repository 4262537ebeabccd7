"""Rules of operators between two linear layers: the fate of the axis between them, and a cut of it against torch."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topiarist.graph import trace
from topiarist.graph.explain import status
from topiarist.testing.invariants import check_agreement, check_bill, check_symmetry, cut_axes
from topiarist.testing.zoo import Net

# Each entry: the code on h of shape (2, 6, 8), what it reads from the model, and the fate of the axis of 8.

FREE, INEXACT, PINNED = "free", "inexact", "pinned"


def heads(h, num):
    return h.unflatten(-1, (num, -1)).transpose(1, 2)


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


def put(h, index, value):
    h = h.clone()
    h[index] = value
    return h


def windows(h):
    """(batch, n, …) as (batch, n // 2 − 1, 4, …): windows of four, two apart."""
    (size, length, *sizes), (first, stride, *strides) = h.shape, h.stride()
    return h.as_strided((size, length // 2 - 1, 4, *sizes), (first, 2 * stride, stride, *strides))


def through_a_view(h, value):
    h.view(2, 6, -1)[:] = value
    return h


G = {"g": parameter(8)}
ROWS = torch.tensor([4, 1])
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
    "the indices of the largest": (lambda m, h: h + h.max(2)[1][..., None], {}, PINNED),
    "argmax": (lambda m, h: h + h.argmax(-1, keepdim=True), {}, PINNED),
    "argmax beside it": (lambda m, h: h + h.argmin(1, keepdim=True), {}, FREE),
    "argmax of all": (lambda m, h: h + h.argmax(), {}, PINNED),
    "median": (lambda m, h: h + h.median(-1, keepdim=True)[0], {}, INEXACT),
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
    "smallest and largest": (lambda m, h: h + sum(h.aminmax(dim=-1, keepdim=True)), {}, INEXACT),
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
    "attention with shared keys": (
        lambda m, h: F.scaled_dot_product_attention(
            heads(m.q(h), 4), heads(m.k(h), 2), heads(h, 2), scale=0.5, enable_gqa=True
        ).transpose(1, 2).flatten(2) @ m.w,
        {"q": nn.Linear(8, 12), "k": nn.Linear(8, 6), "w": parameter(16, 8)}, None,
    ),
    "grouped products": (
        lambda m, h: F.grouped_mm(h.flatten(0, 1), m.w, offs=m.ends).view(2, 6, 8),
        {"w": parameter(3, 8, 8), "ends": torch.tensor([4, 5, 12], dtype=torch.int32)}, FREE,
    ),
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
    "every second": (lambda m, h: torch.stack([-h[..., 1::2], h[..., ::2]], -1).flatten(-2) + h * m.g, G, None),
    "every third of what is no multiple": (lambda m, h: h[..., ::3].sum(-1, True) + h, {}, PINNED),
    "an index of it that nobody reads": (lambda m, h: h * m.g[None].expand((*h[..., 0].shape, -1)), G, FREE),
    "a number of it": (lambda m, h: h * float(h[0, 0, 0] > 0), {}, PINNED),
    "the number of an argmax": (lambda m, h: h * int(h[0, 0].argmax()), {}, PINNED),
    "an index of a constant": (lambda m, h: h + torch.ones_like(h)[..., 0][..., None], {}, FREE),
    "an index of what was a constant": (
        lambda m, h: h + put(torch.zeros_like(h), slice(None), h)[..., 0][..., None], {}, PINNED,
    ),
    "an index of what was written through a view": (
        lambda m, h: h + through_a_view(torch.zeros_like(h), h)[..., 0][..., None], {}, PINNED,
    ),
    "as large as another": (lambda m, h: h.mT.reshape_as(h) + h.view_as(h) * m.g, G, None),
    "expanded as another": (lambda m, h: h + m.g.expand_as(h), G, FREE),
    "padded by numbers": (lambda m, h: F.pad(h, (0, 0, m.n, 0))[:, :6] + h, {"n": torch.tensor(2)}, FREE),
    "every second of others": (lambda m, h: h[:, ::2].repeat(1, 2, 1), {}, FREE),
    "flip": (lambda m, h: h.flip(-1), {}, PINNED),
    "roll of others": (lambda m, h: h.roll(2, 1), {}, FREE),
    "roll": (lambda m, h: h.roll(2, -1), {}, PINNED),
    "tril": (lambda m, h: h.tril(), {}, PINNED),
    "expand beside it": (lambda m, h: h + m.g.expand(2, 6, -1), G, FREE),
    "repeat beside it": (lambda m, h: h + m.g.repeat(6, 1), G, FREE),
    "glu": (lambda m, h: F.glu(h, -1).repeat(1, 1, 2), {}, None),
    "pad beside it": (lambda m, h: F.pad(h, (0, 0, 1, 0))[:, :-1] + F.pad(h, (0, 0, -1, 1)), {}, FREE),
    "complex of it": (lambda m, h: torch.view_as_complex(h.unflatten(-1, (-1, 2))).abs().repeat(1, 1, 2), {}, None),
    "polar": (lambda m, h: h + torch.polar(h.abs(), h).real.sum(-1, True), {}, FREE),
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
    "rows written by a table": (lambda m, h: put(h, (slice(None), m.t), h[:, :2] * m.g), {**G, "t": ROWS}, FREE),
    "rows added by a table": (
        lambda m, h: torch.zeros_like(h).index_put((m.u, m.t), m.g.repeat(2, 1), accumulate=True) + h,
        {**G, "t": ROWS, "u": torch.tensor([0, 1])}, FREE,
    ),
    "rows written by a mask": (lambda m, h: put(h, h[..., 0].isnan(), 3.0), {}, PINNED),
    "features written by a table": (lambda m, h: put(h, (..., m.t), 2.0), {"t": ROWS}, PINNED),
    "a number written then sum": (lambda m, h: h + put(h, (slice(None), m.t), 2.0).sum(-1, True), {"t": ROWS}, INEXACT),
    "values written then sum": (
        lambda m, h: h + put(h, (slice(None), m.t), h[:, :2]).sum(-1, True), {"t": ROWS}, FREE,
    ),
    "scatter": (lambda m, h: h.scatter(1, m.t, 1.0), {"t": torch.zeros(2, 1, 8, dtype=torch.long)}, FREE),
    "scatter of values": (lambda m, h: h.scatter(1, h.argsort(1), h), {}, FREE),
    "scatter of values then sum": (lambda m, h: h + h.scatter_add(1, h.argsort(1), h).sum(-1, True), {}, FREE),
    "scatter of a number then sum": (
        lambda m, h: h + h.clone().scatter_(1, h.argsort(1), 1.0).sum(-1, True), {}, INEXACT,
    ),
    "scatter along it": (lambda m, h: h.scatter(2, h.argsort(2), h), {}, PINNED),
    "scatter into a part of it": (
        lambda m, h: h.scatter(1, m.t, 0.0), {"t": torch.zeros(2, 6, 4, dtype=torch.long)}, PINNED,
    ),
    "rows added": (lambda m, h: h.index_add(1, m.t, h[:, :2] * m.g), {**G, "t": ROWS}, FREE),
    "rows copied then sum": (lambda m, h: h + h.index_copy(1, m.t, h[:, 3:5]).sum(-1, True), {"t": ROWS}, FREE),
    "rows filled": (lambda m, h: h.clone().index_fill_(1, m.t, 0.5), {"t": ROWS}, FREE),
    "rows filled then sum": (lambda m, h: h + h.index_fill(1, m.t, 0.5).sum(-1, True), {"t": ROWS}, INEXACT),
    "features filled": (lambda m, h: h.clone().index_fill_(2, m.t, 0.0), {"t": ROWS}, PINNED),
    "positions that are not zero": (lambda m, h: h + h[0].nonzero().sum() * 0.0, {}, PINNED),
    "bags of rows": (
        lambda m, h: h + F.embedding_bag(m.t[None].expand(6, -1), m.table, mode="mean"),
        {"table": parameter(7, 8), "t": ROWS}, FREE,
    ),
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
    # tensors in lists and dicts
    "a table in a list": (lambda m, h: h + m.tables[0], {"tables": [torch.ones(8)]}, FREE),
    "a table in a dict": (lambda m, h: h * m.tables["one"], {"tables": {"one": torch.ones(1, 8)}}, FREE),
    # what counts values
    "a histogram": (lambda m, h: h / torch.histc(h, 4).sum(), {}, PINNED),
    "what there is": (lambda m, h: h / len(torch.unique(h)), {}, PINNED),
    # what has no rule
    "no rule": (lambda m, h: torch.renorm(h, 2, 2, 1.0), {}, PINNED),
    "no rule in place": (lambda m, h: h.clone().put_(m.t, m.t * 0.0), {"t": torch.tensor([1])}, PINNED),
    "windows by strides": (lambda m, h: windows(h.contiguous()).sum(2).repeat(1, 2, 1)[:, :6], {}, FREE),
    "windows by strides of features": (
        lambda m, h: windows(h.mT.contiguous()).sum(2).mT.repeat(1, 1, 3)[..., :8], {}, PINNED,
    ),
    "the same strides": (lambda m, h: h.contiguous().as_strided(h.size(), h.contiguous().stride()), {}, FREE),
    "strides written in the code": (lambda m, h: h.contiguous().as_strided(h.shape, (48, 8, 1)), {}, PINNED),
    "sizes written in the code": (
        lambda m, h: h.contiguous().as_strided((2, 6, 8), h.contiguous().stride()), {}, PINNED,
    ),
    "strides that reach into features": (
        lambda m, h: h.contiguous().as_strided((2, 3, 2, 8), (h.stride(0), 2 * h.stride(1), 5, 1)).flatten(1, 2),
        {}, PINNED,
    ),
    "windows by strides of what is transposed": (
        lambda m, h: windows(h.permute(1, 0, 2).contiguous().permute(1, 0, 2)).sum(2).repeat(1, 3, 1), {}, FREE,
    ),
    "strides that leave gaps": (lambda m, h: h.mT.as_strided(h.size(), h.stride()), {}, PINNED),
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

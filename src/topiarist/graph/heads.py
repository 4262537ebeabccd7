"""`torch.nn.MultiheadAttention` with heads that need not fill its stream.

Torch's own module checks that ``num_heads · head_dim`` is ``embed_dim``: a head could leave it only together with so
many features of the stream, and with a head of every other block on it. What it computes needs no such thing. While a
model is traced, `FreeAttention` stands for it, with the same parameters and attributes under the same names; in a
smaller model, it stays where the sizes ask for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FreeAttention(nn.MultiheadAttention):
    """What `torch.nn.MultiheadAttention` computes, with ``num_heads`` heads of ``head_dim``, of a stream of any width.

    Parameters, their names and the arguments of `forward` are those of torch's module; ``in_proj_weight`` is
    (3 · num_heads · head_dim, embed_dim), ``out_proj.weight`` (embed_dim, num_heads · head_dim).

    Example:
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch...>
        >>> stock, x = nn.MultiheadAttention(6, 2, batch_first=True), torch.randn(1, 3, 6)
        >>> torch.allclose(FreeAttention.of(stock)(x, x, x)[0], stock(x, x, x)[0], atol=1e-6)
        True
    """

    @classmethod
    def of(cls, module: nn.MultiheadAttention) -> FreeAttention:
        """The same module, with the very parameters of ``module``, which it stands for."""
        made = cls.__new__(cls)
        made.__dict__.update(module.__dict__)
        made._qkv_same_embed_dim = False  # by which torch's encoder layers know that their fast path is no way
        return made

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Attention, and its weights if they are needed; see `torch.nn.MultiheadAttention`."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        is_batched = query.dim() == 3
        if not is_batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._heads(query, key, value)
        mask = self._mask(q, k, attn_mask, key_padding_mask)
        weights = None
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
            weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, -1), dropout)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = F.linear(mixed.transpose(1, 2).flatten(-2), self.out_proj.weight, self.out_proj.bias)
        if not is_batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _heads(self, *inputs: Tensor) -> list[Tensor]:
        """Queries, keys and values: (batch, heads, tokens, head_dim)."""
        for x, width in zip(inputs, (self.embed_dim, self.kdim, self.vdim), strict=True):
            if x.shape[-1] != width:
                raise ValueError(f"attention over {width} features was given {tuple(x.shape)}")
        packed = self.in_proj_weight
        own = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight) if packed is None else packed.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        found = [F.linear(x, weight, bias) for x, weight, bias in zip(inputs, own, biases, strict=True)]
        for place, extra in enumerate((None, self.bias_k, self.bias_v)):
            if extra is not None:
                found[place] = torch.cat([found[place], extra.expand(len(found[place]), -1, -1)], 1)
        found = [x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in found]
        if self.add_zero_attn:
            found[1:] = [torch.cat([x, torch.zeros_like(x[:, :, :1])], 2) for x in found[1:]]
        return found

    def _mask(self, q: Tensor, k: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """What is added to the scores, (batch or 1, heads or 1, queries or 1, keys)."""
        mask = None
        if attn_mask is not None:
            mask = _additive(attn_mask, q)
            mask = mask[None, None] if mask.dim() == 2 else mask.unflatten(0, (len(q), self.num_heads))
        if padding is not None:
            hidden = _additive(padding, q)[:, None, None]
            mask = hidden if mask is None else mask + hidden
        num_more = (self.bias_k is not None) + bool(self.add_zero_attn)
        return mask if mask is None or not num_more else F.pad(mask, (0, num_more))


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def with_free_heads(model: nn.Module) -> nn.Module:
    """``model`` with `FreeAttention` in the place of every `torch.nn.MultiheadAttention`; it is changed."""
    return _freed(model, lambda module: True)


def where_they_must(model: nn.Module) -> nn.Module:
    """The same for those only of which the heads do not fill the stream any more."""
    return _freed(model, lambda module: module.num_heads * module.head_dim != module.embed_dim)


def _freed(model: nn.Module, is_wanted: Callable[[nn.MultiheadAttention], bool]) -> nn.Module:
    made: dict[int, nn.Module] = {}
    for module in list(model.modules()):
        if type(module) is nn.MultiheadAttention and is_wanted(module):
            made[id(module)] = FreeAttention.of(module)
    for module in list(model.modules()) if made else ():
        for name, part in module._modules.items():
            if part is not None and id(part) in made:
                module._modules[name] = made[id(part)]
    for module in list(model.modules()) if made else ():
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, FreeAttention) for m in module.modules()):
            module.use_nested_tensor = False  # part of the fast path, which it would hand to the layers
    return made.get(id(model), model)

"""A character model with segment memory and relative positions: Transformer-XL (Dai et al. 2019), made small."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.errors import InputError


class RelativeAttention(nn.Module):
    """Attention over the segment and the memory before it, with the terms (a) to (d) of the paper:
    A_ij = (W_q x_i + u)ᵀ W_k x_j + (W_q x_i + v)ᵀ W_r R_{i−j}."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.position = nn.Linear(dim, dim, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, self.head_dim))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, self.head_dim))
        self.output = nn.Linear(dim, dim, bias=False)

    def _heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.num_heads, self.head_dim))

    def forward(self, x: Tensor, memory: Tensor, positions: Tensor) -> Tensor:
        """(batch, time, dim), memory (batch, past, dim), positions (past + time, dim) of falling distance."""
        both = torch.cat((memory, x), dim=1)
        query, key, value = self._heads(self.query(x)), self._heads(self.key(both)), self._heads(self.value(both))
        content = torch.einsum("bihd,bjhd->bhij", query + self.content_bias, key)
        place = torch.einsum("bihd,jhd->bhij", query + self.position_bias, self._heads(self.position(positions)))
        scores = (content + _shift(place)) * self.scale
        past, time = memory.shape[1], x.shape[1]
        later = torch.ones(time, past + time, dtype=torch.bool, device=x.device).triu(past + 1)
        weights = scores.masked_fill(later, -torch.inf).softmax(dim=-1)
        out: Tensor = self.output(torch.einsum("bhij,bjhd->bihd", weights, value).flatten(2))
        return out


def _shift(scores: Tensor) -> Tensor:
    """Move row i left by (time − 1 − i), so that column j holds the distance i − j (appendix B of the paper)."""
    batch, heads, time, length = scores.shape
    padded = F.pad(scores, (1, 0)).reshape(batch, heads, length + 1, time)
    return padded[:, :, 1:].reshape(batch, heads, time, length)


class Block(nn.Module):
    """Attention and a two-layer ReLU network, each added to its input, with layer norms before them."""

    def __init__(self, dim: int, num_heads: int, num_hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = RelativeAttention(dim, num_heads)
        self.fc1 = nn.Linear(dim, num_hidden)
        self.fc2 = nn.Linear(num_hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, positions: Tensor) -> Tensor:
        """(batch, time, dim) → (batch, time, dim)."""
        x = x + self.dropout(self.attention(self.norm1(x), self.norm1(memory), positions))
        out: Tensor = x + self.dropout(self.fc2(F.relu(self.fc1(self.norm2(x)))))
        return out


class TransformerXL(nn.Module):
    """Predicts the next of ``num_tokens`` tokens from those before it, and from a memory of earlier segments.

    Raises:
        InputError: ``dim`` is not a multiple of ``num_heads``, or odd.

    Example:
        >>> model = TransformerXL(num_tokens=65, dim=32)
        >>> tokens = torch.zeros(2, 7, dtype=torch.long)
        >>> logits, memory = model.with_memory(tokens, model.no_memory(tokens))
        >>> logits.shape, memory.shape
        (torch.Size([2, 65, 7]), torch.Size([4, 2, 7, 32]))
    """

    rates: Tensor

    def __init__(
        self,
        num_tokens: int = 256,
        *,
        dim: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        num_hidden: int = 512,
        memory_length: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if dim % num_heads or dim % 2:
            raise InputError(f"dim {dim} must be even and divide into {num_heads} heads; try a multiple of both")
        self.memory_length = memory_length
        self.embedding = nn.Embedding(num_tokens, dim)
        self.blocks = nn.ModuleList(Block(dim, num_heads, num_hidden, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.decoder = nn.Linear(dim, num_tokens)
        self.register_buffer("rates", 10_000 ** -(torch.arange(0, dim, 2) / dim), persistent=False)

    def no_memory(self, tokens: Tensor) -> Tensor:
        """The memory before the first segment: (num_layers, batch, 0, dim)."""
        return self.embedding.weight.new_zeros(len(self.blocks), len(tokens), 0, self.embedding.embedding_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, time) → (batch, num_tokens, time), as `torch.nn.CrossEntropyLoss` takes it, without a memory."""
        return self.with_memory(tokens, self.no_memory(tokens))[0]

    def with_memory(self, tokens: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The same after the segments that ``memory`` (num_layers, batch, past, dim) holds, and the next memory."""
        x = self.embedding(tokens)
        positions = self._positions(memory.shape[2] + tokens.shape[1])
        held = []
        for block, past in zip(self.blocks, memory, strict=True):
            held.append(torch.cat((past, x), dim=1)[:, -self.memory_length :].detach())
            x = block(x, past, positions)
        logits: Tensor = self.decoder(self.norm(x))
        return logits.transpose(1, 2), torch.stack(held)

    def _positions(self, length: int) -> Tensor:
        """Sines and cosines of the distances length − 1, …, 0: (length, dim)."""
        angles = torch.arange(length - 1, -1, -1, device=self.rates.device)[:, None] * self.rates
        return torch.cat((angles.sin(), angles.cos()), dim=1)

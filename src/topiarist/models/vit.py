"""A small Vision Transformer (Dosovitskiy et al. 2021): patches, a class token, learned positions, pre-norm blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.errors import InputError


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection: softmax(q kᵀ · head_dim^−½) v (Vaswani et al. 2017)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) → (batch, tokens, dim)."""
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = torch.softmax(q @ k.transpose(-2, -1) * self.scale, dim=-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Pre-norm transformer block: attention and a two-layer GELU network, each added to its input."""

    def __init__(self, dim: int, num_heads: int, num_hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, num_hidden)
        self.fc2 = nn.Linear(num_hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) → (batch, tokens, dim)."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class VisionTransformer(nn.Module):
    """Patches of ``patch_size`` × ``patch_size``, ``depth`` blocks, the class token read out by a linear head.

    Raises:
        InputError: ``dim`` is not a multiple of ``num_heads``, or ``image_size`` of ``patch_size``.

    Example:
        >>> VisionTransformer(image_size=8, patch_size=2)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        patch_size: int = 4,
        in_channels: int = 3,
        num_classes: int = 10,
        dim: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        num_hidden: int = 128,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise InputError(f"dim {dim} does not divide into {num_heads} heads; try a multiple of {num_heads}")
        if image_size % patch_size:
            raise InputError(f"images of side {image_size} do not divide into patches of {patch_size}")
        self.patch_embed = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch_size) ** 2, dim))
        self.blocks = nn.Sequential(*(Block(dim, num_heads, num_hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the class token and the positions anew; the layers inside have a ``reset_parameters`` of their own."""
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, side, side) → (batch, num_classes)."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        out: Tensor = self.head(x[:, 0])
        return out

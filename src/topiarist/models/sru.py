"""Simple recurrent units (Lei, Zhang, Wang, Dai, Artzi 2018): products for all times at once, a light recurrence."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SRU(nn.Module):
    """One layer: c_t = f_t ⊙ c_{t−1} + (1 − f_t) ⊙ u_t and h_t = r_t ⊙ c_t + (1 − r_t) ⊙ x_t, with
    f_t = σ(W_f x_t + v_f ⊙ c_{t−1} + b_f), r_t = σ(W_r x_t + v_r ⊙ c_{t−1} + b_r) and u_t = W x_t.

    With ``num_projected`` the product with W, W_f, W_r goes through that many dimensions first, as the language models
    of Wang, Wohlwend, Lei 2020 have it. The highway bias b_r begins at −3, which carries the input on.

    Example:
        >>> SRU(4)(torch.zeros(2, 5, 4)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(self, dim: int, num_projected: int | None = None) -> None:
        super().__init__()
        self.project = nn.Identity() if num_projected is None else nn.Linear(dim, num_projected, bias=False)
        self.product = nn.Linear(num_projected or dim, 3 * dim, bias=False)
        self.recurrent = nn.Parameter(torch.zeros(2, dim))
        self.bias = nn.Parameter(torch.zeros(2, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw v_f and v_r anew and put the biases back; the products have a ``reset_parameters`` of their own."""
        nn.init.uniform_(self.recurrent, -(3**0.5) * 0.1, 3**0.5 * 0.1)
        with torch.no_grad():
            self.bias[0], self.bias[1] = 0.0, -3.0

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, dim) → (batch, time, dim)."""
        u, forget, reset = self.product(self.project(x)).chunk(3, dim=-1)
        (v_f, v_r), (b_f, b_r) = self.recurrent.unbind(), self.bias.unbind()
        cell, cells, gates = torch.zeros_like(x[:, 0]), [], []
        for t in range(x.shape[1]):
            gates.append(torch.sigmoid(reset[:, t] + v_r * cell + b_r))
            f = torch.sigmoid(forget[:, t] + v_f * cell + b_f)
            cell = f * cell + (1 - f) * u[:, t]
            cells.append(cell)
        r = torch.stack(gates, dim=1)
        return r * torch.stack(cells, dim=1) + (1 - r) * x


class SRULanguageModel(nn.Module):
    """An embedding, ``num_layers`` layers of `SRU` with layer norms before them, a linear layer for the next token.

    Example:
        >>> SRULanguageModel(num_tokens=65, dim=32)(torch.zeros(2, 7, dtype=torch.long)).shape
        torch.Size([2, 65, 7])
    """

    def __init__(
        self, num_tokens: int = 256, dim: int = 256, num_layers: int = 2, num_projected: int | None = None
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_layers))
        self.layers = nn.ModuleList(SRU(dim, num_projected) for _ in range(num_layers))
        self.decoder = nn.Linear(dim, num_tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, time) → (batch, num_tokens, time), as `torch.nn.CrossEntropyLoss` takes it."""
        x = self.embedding(tokens)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = layer(norm(x))
        logits: Tensor = self.decoder(x)
        return logits.transpose(1, 2)

"""A language model of LSTM layers (Hochreiter and Schmidhuber 1997; Zaremba, Sutskever, Vinyals 2014)."""

from __future__ import annotations

from torch import Tensor, nn


class LSTMLanguageModel(nn.Module):
    """An embedding, ``num_layers`` LSTM layers of ``dim`` units, a linear layer that predicts the next token.

    Example:
        >>> import torch
        >>> LSTMLanguageModel(num_tokens=65, dim=32)(torch.zeros(2, 7, dtype=torch.long)).shape
        torch.Size([2, 65, 7])
    """

    def __init__(self, num_tokens: int = 256, dim: int = 256, num_layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, dim)
        self.lstm = nn.LSTM(dim, dim, num_layers, batch_first=True)
        self.decoder = nn.Linear(dim, num_tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, time) → (batch, num_tokens, time), as `torch.nn.CrossEntropyLoss` takes it."""
        hidden, _ = self.lstm(self.embedding(tokens))
        logits: Tensor = self.decoder(hidden)
        return logits.transpose(1, 2)

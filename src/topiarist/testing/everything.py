"""One small network in which every structure has something to cut, with data and a loss: for trying combinations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.models.vit import Attention

Batch = tuple[Tensor, Tensor]


class _Block(nn.Module):
    """A residual block of convolutions: a layer that may go."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class _Mixture(nn.Module):
    """A mixture of experts: of each token the best two of four, by a router."""

    def __init__(self, width: int, num_experts: int = 4, num_chosen: int = 2) -> None:
        super().__init__()
        self.router = nn.Linear(width, num_experts)
        self.up = nn.Parameter(torch.empty(num_experts, width, width))
        self.down = nn.Parameter(torch.empty(num_experts, width, width))
        self.num_chosen = num_chosen
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for stack in (self.up, self.down):
            nn.init.normal_(stack, std=stack.shape[-1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.router(x).softmax(-1).topk(self.num_chosen)
        hidden = torch.relu(torch.einsum("bd,bkde->bke", x, self.up[chosen]))
        out: Tensor = x + (share[..., None] * torch.einsum("bke,bked->bkd", hidden, self.down[chosen])).sum(1)
        return out


class Everything(nn.Module):
    """Convolutions, batch norm, residual blocks, attention, experts, linear layers: (batch, 3, 4, 4) → (batch, 4)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(2)))
        self.attention = Attention(width, 4)
        self.mixture = _Mixture(width)
        self.fc = nn.Linear(width, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.blocks(torch.relu(self.bn(self.stem(x)))).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens)
        out: Tensor = self.head(torch.relu(self.fc(self.mixture(tokens.mean(1)))))
        return out


def everything(seed: int = 0) -> tuple[Everything, list[Batch]]:
    """The network, and two batches of inputs and targets, drawn from ``seed``; global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Everything()
        data = [(torch.randn(6, 3, 4, 4), torch.randint(4, (6,))) for _ in range(2)]
        F.cross_entropy(model(data[0][0]), data[0][1])  # batch norms have seen something
        return model.eval(), data

"""The default network, ``--arch my``: a small residual net (He et al. 2016) for 8×8 digits and 28×28 MNIST alike."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.models.resnet import BasicBlock


class DigitsNet(nn.Module):
    """A 3×3 stem and three residual blocks of widths w, 2w and 2w; the second block halves the image by a 1×1 shortcut.

    Example:
        >>> import torch
        >>> DigitsNet()(torch.zeros(2, 1, 8, 8)).shape, DigitsNet()(torch.zeros(2, 1, 28, 28)).shape
        (torch.Size([2, 10]), torch.Size([2, 10]))
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.block1 = BasicBlock(width, width)
        self.block2 = BasicBlock(width, 2 * width, stride=2)
        self.block3 = BasicBlock(2 * width, 2 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) → (batch, num_classes)."""
        x = F.relu(self.bn(self.conv(x)))
        x = self.block3(self.block2(self.block1(x)))
        out: Tensor = self.linear(self.pool(x).flatten(1))
        return out

"""Residual networks for CIFAR (He, Zhang, Ren, Sun 2016, section 4.2): ResNet-20, -32, -56 and -110.

Shortcut option A is a strided slice with zero-padded channels and has no parameters, option B a 1×1 convolution with
batch norm. Parameters with option A: 269,722 (20), 464,154 (32), 853,018 (56), 1,727,962 (110). Names are those of
akamaster/pytorch_resnet_cifar10, whose weights load as they are.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.errors import InputError


class PaddedShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, with zero channels added on both sides."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.pad_before = (num_out - num_in) // 2
        self.pad_after = num_out - num_in - self.pad_before

    def forward(self, x: Tensor) -> Tensor:
        """(batch, num_in, h, w) → (batch, num_out, h / stride, w / stride)."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.pad_before, self.pad_after))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm, added to a shortcut: relu(f(x) + shortcut(x))."""

    def __init__(self, num_in: int, num_out: int, stride: int = 1, option: str = "B") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or num_in != num_out:
            projection = (nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out))
            self.shortcut = PaddedShortcut(num_in, num_out, stride) if option == "A" else nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, num_in, h, w) → (batch, num_out, h / stride, w / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of (depth − 2) / 6 blocks with 16, 32 and 64 channels, a mean over the image, one linear layer.

    Raises:
        InputError: ``depth`` is not 6n + 2, or ``option`` is neither ``"A"`` nor ``"B"``.

    Example:
        >>> sum(p.numel() for p in ResNet(20).parameters())
        269722
    """

    def __init__(self, depth: int = 20, option: str = "A", in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise InputError(f"a CIFAR ResNet's depth is 6n + 2, got {depth}; try 20, 32, 56 or 110")
        if option not in ("A", "B"):
            raise InputError(
                f"shortcut option {option!r} is not known; try 'A' (zero padding) or 'B' (1×1 convolution)"
            )
        num_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, num_blocks, 1, option)
        self.layer2 = _stage(16, 32, num_blocks, 2, option)
        self.layer3 = _stage(32, 64, num_blocks, 2, option)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights of convolutions and of the linear layer anew (He et al. 2015)."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, side, side) → (batch, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.linear(self.pool(x).flatten(1))
        return out


def _stage(num_in: int, num_out: int, num_blocks: int, stride: int, option: str) -> nn.Sequential:
    first = BasicBlock(num_in, num_out, stride, option)
    return nn.Sequential(first, *(BasicBlock(num_out, num_out, 1, option) for _ in range(num_blocks - 1)))

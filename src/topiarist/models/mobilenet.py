"""MobileNetV2 for CIFAR (Sandler et al. 2018): inverted residuals, with strides that suit images of 32 × 32.

The stem and the second stage have stride 1 where the paper has 2. With 10 classes 2,236,682 parameters.
"""

from __future__ import annotations

from torch import Tensor, nn

# expansion, channels, blocks, stride of the first block (table 2 of the paper, but for the second row's stride)
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _conv(num_in: int, num_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(num_in, num_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(num_out),
    ]


class InvertedResidual(nn.Module):
    """1×1 expansion, 3×3 depthwise, 1×1 linear projection; added to the input where shapes allow."""

    def __init__(self, num_in: int, num_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = num_in * expansion
        expand = [] if expansion == 1 else [*_conv(num_in, hidden, 1), nn.ReLU6()]
        depthwise = [*_conv(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()]
        self.layers = nn.Sequential(*expand, *depthwise, *_conv(hidden, num_out, 1))
        self.is_residual = stride == 1 and num_in == num_out

    def forward(self, x: Tensor) -> Tensor:
        """(batch, num_in, h, w) → (batch, num_out, h / stride, w / stride)."""
        out: Tensor = self.layers(x)
        return x + out if self.is_residual else out


class MobileNetV2(nn.Module):
    """A stem, seventeen inverted residuals, a 1×1 convolution to 1280 channels, a mean over the image, a linear layer.

    Example:
        >>> sum(p.numel() for p in MobileNetV2().parameters())
        2236682
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        blocks, width = [], 32
        for expansion, num_out, num_blocks, stride in _STAGES:
            for i in range(num_blocks):
                blocks.append(InvertedResidual(width, num_out, expansion, stride if i == 0 else 1))
                width = num_out
        self.stem = nn.Sequential(*_conv(in_channels, 32, 3), nn.ReLU6())
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_conv(width, 1280, 1), nn.ReLU6())
        self.linear = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) → (batch, num_classes)."""
        out: Tensor = self.linear(self.head(self.blocks(self.stem(x))).mean((2, 3)))
        return out

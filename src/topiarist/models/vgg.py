"""VGG-16 with batch normalisation for CIFAR (Simonyan and Zisserman 2015), as Liu et al. 2019 prune it.

Thirteen 3×3 convolutions without biases and one linear layer: 14,724,042 parameters for 10 classes.
"""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # a pooling after each but the last


class VGG(nn.Module):
    """Stages of convolution, batch norm and ReLU, poolings between them, a mean over the image, one linear layer.

    Example:
        >>> sum(p.numel() for p in vgg16_bn().parameters())
        14724042
    """

    def __init__(
        self, widths: tuple[tuple[int, ...], ...] = WIDTHS, in_channels: int = 3, num_classes: int = 10
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in widths:
            layers += [nn.MaxPool2d(2)] if layers else []
            for width in stage:
                layers += [nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                in_channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(in_channels, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights of the convolutions anew (He et al. 2015)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, side, side), side at least 16 → (batch, num_classes)."""
        out: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return out


def vgg16_bn(in_channels: int = 3, num_classes: int = 10, width: float = 1.0) -> VGG:
    """VGG-16-BN for CIFAR with every layer's width multiplied by ``width`` (at least one channel stays)."""
    widths = tuple(tuple(max(1, int(w * width)) for w in stage) for stage in WIDTHS)
    return VGG(widths, in_channels, num_classes)

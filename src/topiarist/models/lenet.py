"""LeNet-300-100 and LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998), in the sizes that pruning papers prune.

LeNet-5 is Caffe's 20-50-500-10 variant, the one of Han et al. 2015 and ShrinkBench's ``MnistNet``: 431,080 parameters.
LeNet-300-100 has 266,610.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.errors import InputError


class LeNet300100(nn.Module):
    """Three linear layers, (batch, …) with ``num_inputs`` entries per row → (batch, num_classes).

    Example:
        >>> sum(p.numel() for p in LeNet300100().parameters())
        266610
    """

    def __init__(self, num_inputs: int = 784, num_classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(num_inputs, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, …) → (batch, num_classes)."""
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        out: Tensor = self.fc3(x)
        return out


class LeNet5(nn.Module):
    """Two 5×5 convolutions and two linear layers, (batch, in_channels, side, side) → (batch, num_classes).

    Raises:
        InputError: images smaller than 16×16, of which nothing is left after two convolutions and poolings.

    Example:
        >>> sum(p.numel() for p in LeNet5().parameters())
        431080
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2
        if side < 1:
            raise InputError(f"LeNet5 needs images of 16×16 or larger, got {image_size}; try DigitsNet")
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * side * side, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, side, side) → (batch, num_classes)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        out: Tensor = self.fc2(x)
        return out

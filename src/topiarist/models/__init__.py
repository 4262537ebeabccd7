"""The networks of the demo, the tests and the bench, in plain PyTorch, and the table of their names."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from topiarist.errors import InputError, nearest
from topiarist.models.digits_net import DigitsNet
from topiarist.models.lenet import LeNet5, LeNet300100
from topiarist.models.lstm import LSTMLanguageModel
from topiarist.models.mlp import MLP
from topiarist.models.mobilenet import MobileNetV2
from topiarist.models.resnet import ResNet
from topiarist.models.sru import SRU, SRULanguageModel
from topiarist.models.transformer_xl import TransformerXL
from topiarist.models.tree import DecisionTree
from topiarist.models.vgg import VGG, vgg16_bn
from topiarist.models.vit import VisionTransformer

__all__ = [
    "INPUT_SHAPES",
    "LANGUAGE_MODELS",
    "MLP",
    "MODELS",
    "SRU",
    "VGG",
    "DecisionTree",
    "DigitsNet",
    "LSTMLanguageModel",
    "LeNet5",
    "LeNet300100",
    "MobileNetV2",
    "ResNet",
    "SRULanguageModel",
    "TransformerXL",
    "VisionTransformer",
    "build",
    "vgg16_bn",
]

Shape = tuple[int, int, int]


def _numel(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]


def _resnet(depth: int, option: str) -> Callable[..., nn.Module]:
    def make(input_shape: Shape = (3, 32, 32), num_classes: int = 10) -> nn.Module:
        return ResNet(depth, option, input_shape[0], num_classes)

    return make


def _my(input_shape: Shape = (1, 8, 8), num_classes: int = 10) -> nn.Module:
    return DigitsNet(input_shape[0], num_classes)


def _mlp(input_shape: Shape = (1, 28, 28), num_classes: int = 10) -> nn.Module:
    return MLP(_numel(input_shape), 256, 256, num_classes)


def _lenet_300_100(input_shape: Shape = (1, 28, 28), num_classes: int = 10) -> nn.Module:
    return LeNet300100(_numel(input_shape), num_classes)


def _lenet5(input_shape: Shape = (1, 28, 28), num_classes: int = 10) -> nn.Module:
    return LeNet5(input_shape[0], num_classes, input_shape[1])


def _vgg16_bn(input_shape: Shape = (3, 32, 32), num_classes: int = 10) -> nn.Module:
    return vgg16_bn(input_shape[0], num_classes)


def _mobilenet(input_shape: Shape = (3, 32, 32), num_classes: int = 10) -> nn.Module:
    return MobileNetV2(input_shape[0], num_classes)


def _vit(input_shape: Shape = (3, 32, 32), num_classes: int = 10) -> nn.Module:
    channels, side, _ = input_shape
    patch_size = 4 if side >= 16 else 2
    return VisionTransformer(image_size=side, patch_size=patch_size, in_channels=channels, num_classes=num_classes)


# Name → factory(input_shape=(channels, height, width), num_classes=10); the keys are what --arch takes.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "my": _my,
    "mlp": _mlp,
    "lenet-300-100": _lenet_300_100,
    "lenet5": _lenet5,
    "vgg16_bn": _vgg16_bn,
    "resnet20": _resnet(20, "A"),
    "resnet32": _resnet(32, "A"),
    "resnet56": _resnet(56, "A"),
    "resnet110": _resnet(110, "A"),
    "resnet20-b": _resnet(20, "B"),
    "resnet56-b": _resnet(56, "B"),
    "mobilenetv2": _mobilenet,
    "vit": _vit,
}

# Name → factory(num_tokens); --arch takes these too, where the data is text.
LANGUAGE_MODELS: dict[str, Callable[[int], nn.Module]] = {
    "transformer-xl": TransformerXL,
    "sru": SRULanguageModel,
    "lstm": LSTMLanguageModel,
}

# Name → the (channels, height, width) that the factory assumes when it is told none.
INPUT_SHAPES: dict[str, Shape] = {
    name: (1, 8, 8) if name == "my" else (1, 28, 28) if name in ("mlp", "lenet-300-100", "lenet5") else (3, 32, 32)
    for name in MODELS
}


def build(name: str, input_shape: Shape | None = None, num_classes: int = 10) -> nn.Module:
    """A network of the tables by its name, for inputs of shape (batch, *input_shape), or texts of so many tokens.

    Raises:
        InputError: no network has this name.

    Example:
        >>> build("lenet5", (1, 28, 28)).fc2
        Linear(in_features=500, out_features=10, bias=True)
    """
    if name in LANGUAGE_MODELS:
        return LANGUAGE_MODELS[name](num_classes)
    if name not in MODELS:
        raise InputError(f"no network is called {name!r} ({nearest(name, [*MODELS, *LANGUAGE_MODELS])})")
    return MODELS[name](input_shape or INPUT_SHAPES[name], num_classes)

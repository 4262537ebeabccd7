"""The models of each zoo: their names, how one is built, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers_configs
from torch import nn

Built = tuple[nn.Module, Any]  # a model and its example inputs


@dataclass(frozen=True)
class Zoo:
    """One library's models."""

    names: Callable[[], list[str]]
    build: Callable[[str], Built]
    first_is_batch: bool  # in every input; the proof in float64 then runs on one example, the rest on two


def zoos() -> dict[str, Zoo]:
    """Every zoo by name."""
    return {
        "torchvision": Zoo(_torchvision_names, _torchvision, True),
        "timm": Zoo(_timm_names, _timm, True),
        "transformers": Zoo(_transformers_names, _transformers, False),
    }


# -------------------------------------------------------------------------------------------------------- torchvision

_VIDEO = ("mc3_18", "mvit_v1_b", "mvit_v2_s", "r2plus1d_18", "r3d_18", "s3d", "swin3d_b", "swin3d_s", "swin3d_t")
_FLOW = ("raft_large", "raft_small")
_library: list[torch.library.Library] = []  # kept: operators live as long as it does


def _torchvision_names() -> list[str]:
    declare_missing_operators()
    import torchvision

    return [str(name) for name in torchvision.models.list_models()]


def _torchvision(name: str) -> Built:
    declare_missing_operators()
    import torchvision

    options: dict[str, Any] = {"weights": None}
    if any(word in name for word in ("rcnn", "retinanet", "ssd", "fcos", "fcn_", "deeplab", "lraspp")):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    model: nn.Module = torchvision.models.get_model(name, **options)
    if name in _VIDEO:
        size = 224 if name.startswith(("mvit", "s3d", "swin3d")) else 112
        return model, torch.randn(1, 3, 16, size, size)
    if name in _FLOW:
        return model, (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))
    if any(word in name for word in ("rcnn", "retinanet", "ssd", "fcos")):
        return model.backbone, torch.randn(1, 3, 320, 320)  # the heads end in operators that this build lacks
    return model, torch.randn(2, 3, 299 if name == "inception_v3" else 224, 299 if name == "inception_v3" else 224)


def declare_missing_operators() -> None:
    """Builds of torchvision without its compiled operators refuse to be imported until two of them are declared."""
    if not _library and not hasattr(torch.ops.torchvision, "nms"):
        _library.append(torch.library.Library("torchvision", "FRAGMENT"))
        _library[0].define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library[0].define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


# --------------------------------------------------------------------------------------------------------------- timm

_LARGEST = 150_000_000  # parameters


def _timm_names() -> list[str]:
    declare_missing_operators()
    import timm

    return [str(name) for name in timm.list_models()]


def _timm(name: str) -> Built:
    declare_missing_operators()
    import timm

    with torch.device("meta"):
        num_params = sum(p.numel() for p in timm.create_model(name).parameters())
    if num_params > _LARGEST:
        raise TooLargeError(f"{num_params / 1e6:.0f} M parameters")
    model = timm.create_model(name)
    size = model.default_cfg.get("input_size", (3, 224, 224)) if hasattr(model, "default_cfg") else (3, 224, 224)
    return model, torch.randn(2, *size)


# ------------------------------------------------------------------------------------------------------- transformers


def _transformers_names() -> list[str]:
    return list(transformers_configs.MODELS)


def _transformers(name: str) -> Built:
    declare_missing_operators()  # transformers imports torchvision where it is installed
    return transformers_configs.build(name)


class TooLargeError(Exception):
    """The model is beyond what this zoo covers."""

"""A model and its optimizer at chosen steps of training, in memory or on disk: safetensors and JSON, no pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from topiarist.errors import FormatError, InputError, nearest

FORMAT, VERSION = "topiarist-checkpoint", "1"
_MODEL, _OPTIMIZER, _RANDOM = "model.", "optimizer.", "random"

_State = tuple[dict[str, Tensor], dict[str, str]]  # tensors and metadata, as a safetensors file holds them


class Checkpoints:
    """Where training leaves its state after each of ``steps`` (0 is before the first step).

    With a ``folder`` every checkpoint is one file ``step-N.safetensors``, written whole or not at all, and those that
    are there already are known; without one they stay in memory. Tensors are copies on the CPU.

    Example:
        >>> model, checkpoints = nn.Linear(2, 1), Checkpoints(steps=[0])
        >>> checkpoints.reached(0, model)
        >>> before = model.weight.clone()
        >>> _ = model.weight.data.zero_()
        >>> checkpoints.restore(0, model)
        >>> bool((model.weight == before).all()), checkpoints.saved
        (True, [0])
    """

    def __init__(self, folder: str | Path | None = None, steps: Iterable[int] = ()) -> None:
        self.folder = None if folder is None else Path(folder)
        self.steps = frozenset(steps)
        self._memory: dict[int, _State] = {}

    @property
    def saved(self) -> list[int]:
        """The steps that can be restored, in order."""
        if self.folder is None:
            return sorted(self._memory)
        numbers = (f.stem.removeprefix("step-") for f in self.folder.glob("step-*.safetensors"))
        return sorted(int(n) for n in numbers if n.isdecimal())

    def reached(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Save if ``step`` is one of the chosen steps."""
        if step in self.steps:
            self.save(step, model, optimizer)

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Save the state after ``step`` steps: weights, buffers, optimizer and torch's random state."""
        tensors = {_MODEL + k: _copy(v) for k, v in model.state_dict().items() if isinstance(v, Tensor)}
        tensors[_RANDOM] = torch.get_rng_state()
        scalars: dict[str, Any] = {}
        for index, memory in {} if optimizer is None else optimizer.state_dict()["state"].items():
            for name, value in memory.items():
                if isinstance(value, Tensor):
                    tensors[f"{_OPTIMIZER}{index}.{name}"] = _copy(value)
                else:
                    scalars[f"{index}.{name}"] = value
        metadata = {"format": FORMAT, "version": VERSION, "step": str(step), "scalars": json.dumps(scalars)}
        if self.folder is None:
            self._memory[step] = tensors, metadata
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished = self.folder / f".step-{step}.{os.getpid()}.unfinished"
            try:
                save_file(tensors, unfinished, metadata)
                unfinished.replace(self._path(step))
            finally:
                unfinished.unlink(missing_ok=True)

    def restore(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, random: bool = False
    ) -> None:
        """Put the state of ``step`` back into ``model``, and into ``optimizer`` and torch's random state on request.

        Raises:
            InputError: there is no checkpoint of this step, or it is of another model (which stays as it is).
            FormatError: the file is damaged or foreign.
        """
        tensors, metadata = self._load(step)
        weights = {k.removeprefix(_MODEL): v for k, v in tensors.items() if k.startswith(_MODEL)}
        _check_fits(model, weights, step)
        model.load_state_dict(weights, strict=False)  # every tensor was checked; other extra state is not saved
        if optimizer is not None:
            _restore_optimizer(optimizer, tensors, json.loads(metadata["scalars"]))
        if random:
            torch.set_rng_state(tensors[_RANDOM])

    def _path(self, step: int) -> Path:
        return (self.folder or Path()) / f"step-{step}.safetensors"

    def _load(self, step: int) -> _State:
        if step not in self.saved:
            there = ", ".join(map(str, self.saved)) or "none"
            raise InputError(f"no checkpoint of step {step} (saved: {there}); train with Checkpoints(steps=[{step}])")
        if self.folder is None:
            return self._memory[step]
        path = self._path(step)
        try:
            with safe_open(path, "pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
                    raise FormatError(f"{path} is not a topiarist checkpoint of version {VERSION}")
                return {k: file.get_tensor(k) for k in file.keys()}, metadata  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{path} is damaged or not a safetensors file ({error})") from error


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _check_fits(model: nn.Module, weights: Mapping[str, Tensor], step: int) -> None:
    own = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    for name in sorted(own.keys() ^ weights.keys()):
        where, other = ("the checkpoint", weights) if name in own else ("the model", own)
        raise InputError(f"checkpoint {step} is of another model: {where} has no {name} ({nearest(name, other)})")
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            raise InputError(
                f"checkpoint {step} is of another model: {name} is {tuple(weights[name].shape)} there and "
                f"{tuple(tensor.shape)} here; rewind before shrinking"
            )


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], scalars: dict[str, Any]
) -> None:
    memory: dict[int, dict[str, Any]] = {}
    kept = {k.removeprefix(_OPTIMIZER): v for k, v in tensors.items() if k.startswith(_OPTIMIZER)}
    for key, value in {**kept, **scalars}.items():
        index, name = key.split(".", 1)
        memory.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": memory, "param_groups": optimizer.state_dict()["param_groups"]})

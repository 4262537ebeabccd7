"""A pruning run on disk: each completed step is saved, so that the same call goes on after the last one."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from topiarist.errors import FormatError, InputError
from topiarist.io import load, save
from topiarist.mask import active_plan
from topiarist.plan import Plan

_FILE = "progress.json"
_FORMAT = "topiarist-run"

Row = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a run has come: the plan in force, a row per pruning step, a row per training step."""

    plan: Plan | None = None
    curve: tuple[Row, ...] = ()
    history: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Journal:
    """Where a run is kept; without a folder nothing is."""

    folder: Path | None
    identity: str = ""
    run: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path | None, model: nn.Module, run: Mapping[str, Any]) -> Journal:
        """The journal of one run: of this model, with these options.

        Raises:
            InputError: the folder holds a run of another model or with other options.
        """
        if folder is None:
            return cls(None)
        digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode())
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        journal = cls(Path(folder), digest.hexdigest(), dict(run))
        held = journal._read()
        if held is not None and held.get("identity") != journal.identity:
            raise InputError(f"{folder} holds another run, of {_other(held.get('run'), run)}; try another folder")
        return journal

    def resume(self, model: nn.Module) -> tuple[nn.Module, Progress]:
        """The model and progress of the last completed step, or ``model`` as it is at the beginning."""
        held = self._read()
        if held is None or self.folder is None:
            return model, Progress()
        model = load(self.folder / held["step"], build=lambda: copy.deepcopy(model))
        torch.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(held["random"])), dtype=torch.uint8))
        return model, Progress(active_plan(model), tuple(held["curve"]), tuple(held["history"]))

    def save(self, model: nn.Module, progress: Progress) -> None:
        """Keep a completed step; the one before is dropped once this one is whole."""
        if self.folder is None:
            return
        name = f"step-{len(progress.curve)}"
        save(model, self.folder / name)
        text = json.dumps(
            {
                "format": _FORMAT,
                "identity": self.identity,
                "run": dict(self.run),
                "step": name,
                "random": base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode(),
                "curve": [dict(row) for row in progress.curve],
                "history": [dict(row) for row in progress.history],
            }
        )
        temporary = self.folder / f".{_FILE}"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.folder / _FILE)
        for old in self.folder.glob("step-*"):
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)

    def _read(self) -> dict[str, Any] | None:
        if self.folder is None or not (self.folder / _FILE).exists():
            return None
        try:
            held = json.loads((self.folder / _FILE).read_text(encoding="utf-8"))
        except ValueError as error:
            raise FormatError(
                f"{self.folder / _FILE} is damaged ({error}); remove the folder to begin again"
            ) from error
        if not isinstance(held, dict) or held.get("format") != _FORMAT:
            raise FormatError(f"{self.folder / _FILE} is not a run of topiarist's; try another folder")
        return held


def made_folder(folder: str | Path | None) -> Path | None:
    """The folder of a run, which is made where it is not there.

    Raises:
        InputError: it cannot be made.
    """
    if folder is None:
        return None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"a run is kept in a folder, and {folder} cannot be one ({error}); try another") from error
    return Path(folder)


def _other(held: Any, run: Mapping[str, Any]) -> str:
    """What is other in a run that was kept: options by name, or else the model."""
    there = held if isinstance(held, dict) else {}
    names = [name for name in {**there, **run} if there.get(name) != run.get(name)] if there else []
    differ = [f"{name}: {there.get(name)} there, {run.get(name)} now" for name in names]
    return f"other options ({'; '.join(differ)})" if differ else "another model, or other weights or options"

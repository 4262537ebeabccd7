"""Measured times of parts, kept as JSON, so that a device is measured once."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from topiarist.errors import FormatError, InputError
from topiarist.measure.executors import Clock, Executable, quiet

FORMAT = "topiarist-latency-table"
VERSION = 1


@dataclass
class LatencyTable:
    """Milliseconds by what was run (`Part.key`), several times each; ``where`` says on what they were measured. A
    key has the quiet one of its times.

    Example:
        >>> table = LatencyTable({"device": "cpu"}, {"Linear": [3.0, 1.0, 2.0]})
        >>> LatencyTable.from_json(table.to_json()) == table, table["Linear"]
        (True, 1.0)
    """

    where: Mapping[str, str]
    times: dict[str, list[float]] = field(default_factory=dict)

    def __getitem__(self, key: str) -> float:
        return quiet(self.times[key])

    @classmethod
    def open(cls, path: str | Path | None, where: Mapping[str, str]) -> LatencyTable:
        """The table in the file ``path``, or an empty one.

        Raises:
            InputError: the file holds times of another device, executor, number of threads or torch.
            FormatError: the file is no table.
        """
        if path is None or not Path(path).exists():
            return cls(dict(where))
        table = cls.from_json(Path(path).read_text(encoding="utf-8"))
        differ = [f"{k}: {table.where.get(k)} there, {v} now" for k, v in where.items() if table.where.get(k) != v]
        if differ:
            raise InputError(f"{path} holds times measured elsewhere ({', '.join(differ)}); name another file")
        return table

    def complete(
        self,
        make: Mapping[str, Callable[[], Executable]],
        clock: Clock,
        rounds: int,
        path: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Measure every key of ``make`` until it has ``rounds`` times, all in turn; what is there already counts.

        The file at ``path`` is written after every round, and when anything breaks off.
        """
        todo = {key: build() for key, build in make.items() if len(self.times.get(key, ())) < rounds}
        done, total = rounds * (len(make) - len(todo)), rounds * len(make)
        try:
            for i in range(1, rounds + 1):
                for key, executable in todo.items():
                    if len(self.times.setdefault(key, [])) < i:
                        self.times[key].append(clock(executable))
                    done += 1
                    if progress is not None:
                        progress(done, total)
                self.write(path)
        finally:
            self.write(path)

    def write(self, path: str | Path | None) -> None:
        """Write the table to ``path``, all at once."""
        if path is not None:
            beside = Path(f"{path}.tmp")
            beside.write_text(self.to_json(), encoding="utf-8")
            os.replace(beside, path)

    def to_json(self) -> str:
        """The table as JSON text; `from_json` reads it back."""
        raw = {"format": FORMAT, "version": VERSION, "where": dict(self.where), "times": self.times}
        return json.dumps(raw, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        """Read a table back from `to_json`.

        Raises:
            FormatError: the text is not a table, is of another version, or is damaged.
        """
        try:
            raw = json.loads(text)
            if raw["format"] != FORMAT or raw["version"] != VERSION:
                raise FormatError(f"not a latency table of version {VERSION}: {raw['format']!r}, {raw['version']!r}")
            times = {str(key): [float(ms) for ms in each] for key, each in raw["times"].items()}
            return cls({str(k): str(v) for k, v in raw["where"].items()}, {k: v for k, v in times.items() if v})
        except FormatError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"damaged latency table: {error}") from error


def where(device: torch.device, executor: str) -> dict[str, str]:
    """What times depend on beyond the model."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": device.type,
        "processor": name,
        "executor": executor,
        "num_threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
    }

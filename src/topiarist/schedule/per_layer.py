"""A schedule of its own for every layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from topiarist.allocation.per_layer import assign
from topiarist.errors import InputError
from topiarist.plan import Units
from topiarist.schedule.base import Schedule, may_fall, name_of, tried


@dataclass(frozen=True)
class PerLayer:
    """s_l(t) = schedule_l(t, s_l,f): the allocation says what goes of each layer in the end, its schedule when.

    A key is an fnmatch pattern over layer names (``"features.*"``) and units' names (``"fc1.weight"``), or the class
    name of a module (``"Linear"``); the first key that fits decides, in the order of the dict. Every layer needs one.
    A plain dict of words or functions is turned into this wherever a schedule is asked for.

    Raises:
        InputError: a value is no schedule; when asked, a key fits nothing, or a layer has no schedule.

    Example:
        >>> from topiarist.schedule import linear, one_shot
        >>> late = PerLayer({"fc2": one_shot, "Linear": linear})
        >>> units = [Units("fc1.weight", 4, (), "fc1", "Linear"), Units("fc2.weight", 4, (), "fc2", "Linear")]
        >>> late.fractions(0.5, {"fc1.weight": 0.5, "fc2.weight": 0.8}, units)
        {'fc1.weight': 0.25, 'fc2.weight': 0.8}
    """

    schedules: Mapping[str, Schedule]

    def __post_init__(self) -> None:
        found = {key: tried(schedule) for key, schedule in self.schedules.items()}
        if not found:
            raise InputError("a dict of schedules maps layers to schedules, got an empty one; try {'*': 'cubic'}")
        object.__setattr__(self, "schedules", MappingProxyType(found))

    def __repr__(self) -> str:
        return f"PerLayer({ {key: name_of(schedule) for key, schedule in self.schedules.items()} })"

    @property
    def may_fall(self) -> bool:
        """Whether one of them may."""
        return any(may_fall(schedule) for schedule in self.schedules.values())

    def fractions(self, progress: float, final: Mapping[str, float], units: Iterable[Units]) -> dict[str, float]:
        """The fraction removed of each set of units at ``progress``, of those that ``final`` names for the end."""
        units = list(units)
        chosen = assign(self.schedules, units)
        missing = [u.name for u in units if u.name not in chosen]
        if missing:
            raise InputError(f"no schedule fits {', '.join(missing[:4])}; end the dict with '*': 'cubic'")
        return {name: schedule(progress, final[name]) for name, schedule in chosen.items()}

"""How many units of each set must stay: a number, a fraction, or either by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from topiarist.allocation.per_layer import assign
from topiarist.errors import InputError
from topiarist.plan import Units

Amount: TypeAlias = int | float
MinUnits: TypeAlias = Amount | Mapping[str, Amount]


def with_minimum(units: Sequence[Units], least: MinUnits | None) -> tuple[Units, ...]:
    """The units with no smaller `Units.minimum` than ``least`` says, and never a smaller one than they have.

    A whole number counts units (where there are fewer all stay), a float in [0, 1] is a fraction of them, rounded up. A
    mapping has either by the keys of `topiarist.allocation.PerLayer`: patterns over layer names, or module types.

    Raises:
        InputError: an amount is negative, a fraction above 1, or no number; a key fits nothing.

    Example:
        >>> with_minimum([Units("fc:0", 10, (), "fc", "Linear", minimum=1)], {"Linear": 0.25})[0].minimum
        3
    """
    if least is None:
        return tuple(units)
    amounts = dict(least) if isinstance(least, Mapping) else {"*": least}
    for key, amount in amounts.items():
        _check(key, amount)
    found = assign(amounts, units)
    return tuple(replace(u, minimum=max(u.minimum, _count(found.get(u.name, 0), u.num))) for u in units)


def _count(amount: Amount, num: int) -> int:
    return min(amount, num) if isinstance(amount, int) else math.ceil(amount * num - 1e-9)


def _check(key: str, amount: Amount) -> None:
    where = "min_units" if key == "*" else f"min_units[{key!r}]"
    is_number = isinstance(amount, int | float) and not isinstance(amount, bool)
    if not is_number or not 0 <= amount < math.inf or (isinstance(amount, float) and amount > 1):
        raise InputError(f"{where} is a number of units or a fraction of them, such as 8 or 0.1, got {amount!r}")

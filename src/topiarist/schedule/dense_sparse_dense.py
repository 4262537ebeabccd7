"""Dense-sparse-dense: the one schedule that gives back what it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from topiarist.errors import InputError
from topiarist.schedule.progress import check


@dataclass(frozen=True)
class DenseSparseDense:
    """s_f between ``begin`` and ``end`` (fractions of the way, both excluded), else nothing (DSD, Han et al. 2017).

    Training sparse in between regularises; what had been removed comes back as zero and trains on. With the defaults
    all steps are sparse but the last. As the one exception to "a schedule never falls" it says ``may_fall``.

    Raises:
        InputError: not 0 ≤ begin < end ≤ 1; when called, progress or the final fraction outside [0, 1].

    Example:
        >>> [DenseSparseDense()(step / 2, 0.5) for step in range(3)]
        [0.0, 0.5, 0.0]
    """

    begin: float = 0.0
    end: float = 1.0
    may_fall: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.begin < self.end <= 1.0:
            raise InputError(f"the sparse part must have 0 ≤ begin < end ≤ 1, got {self.begin!r} to {self.end!r}")

    def num_steps(self, final: float) -> int:
        """Two: a sparse one and a dense one."""
        check(0.0, final)
        return 2

    def __call__(self, progress: float, final: float) -> float:
        """The fraction removed at ``progress``."""
        check(progress, final)
        return final if self.begin < progress < self.end else 0.0

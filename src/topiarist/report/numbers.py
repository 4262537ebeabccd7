"""How numbers are written on the page: three digits and a unit, and a dash for what was not measured."""

from __future__ import annotations

DASH = "–"


def _three(value: float) -> str:
    """Three significant digits, never in exponents: 4.12, 41.0, 412, 1240."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def count(value: float | None, unit: str = "") -> str:
    """A count with a metric prefix.

    Example:
        >>> count(999), count(272_474), count(40_813_184), count(1_094_321, "B"), count(None)
        ('999', '272 k', '40.8 M', '1.09 MB', '–')
    """
    if value is None:
        return DASH
    if abs(value) < 999.5:
        return f"{value:.0f} {unit}".rstrip()
    power = next((p for p in range(1, 5) if abs(value) / 1000**p < 999.5), 5)
    return f"{_three(value / 1000**power)} {' kMGTP'[power]}{unit}"


def fraction(value: float | None) -> str:
    """A fraction with four decimals, as accuracies are compared: ``0.9806``."""
    return DASH if value is None else f"{value:.4f}"


def milliseconds(value: float | None) -> str:
    """A latency: ``3.21 ms``."""
    return DASH if value is None else f"{_three(value)} ms"


def times(value: float | None) -> str:
    """A factor: ``1.92×``.

    Example:
        >>> times(0.99), times(1.9), times(11.84), times(None)
        ('0.99×', '1.90×', '11.8×', '–')
    """
    if value is None:
        return DASH
    return f"{value:.2f}×" if abs(value) < 9.995 else f"{_three(value)}×"


def shape(sizes: tuple[int, ...]) -> str:
    """A shape: ``16 × 3 × 3 × 3``."""
    return " × ".join(str(size) for size in sizes) if sizes else DASH


def signed(value: float) -> str:
    """A difference of fractions with its sign: ``−0.0028``."""
    return f"{'−' if value < 0 else '+'}{abs(value):.4f}" if round(value, 4) else "±0"

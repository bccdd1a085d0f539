"""Axes: from numbers to places, with ticks that a person would choose."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """Straight from the interval [low, high] onto [start, stop]."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, about as many as wanted.

    Example:
        >>> ticks(0, 47)
        [0.0, 10.0, 20.0, 30.0, 40.0]
    """
    rough = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda one: abs(math.log(one / rough)))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def span(values: Iterable[float], floor: float | None = None, ceiling: float | None = None) -> tuple[float, float]:
    """Least and largest finite value, never the same; ``floor`` and ``ceiling`` where given."""
    finite = [value for value in values if math.isfinite(value)]
    low = min(finite, default=0.0) if floor is None else floor
    high = max(finite, default=1.0) if ceiling is None else ceiling
    return (low, high) if high > low else (low - 0.5, low + 0.5) if floor is None else (low, low + 1.0)


def short(value: float | None) -> str:
    """A number as a table shows it: three digits that count, thousands as k.

    Example:
        >>> [short(value) for value in (0.0412, 3.14159, 1234.5, 56789.0, None)]
        ['0.041', '3.14', '1234', '56.8k', '-']
    """
    if value is None or math.isnan(value):
        return "-"
    size = abs(value)
    if size >= 10_000:
        for unit, power in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if size >= power:
                return f"{value / power:.3g}{unit}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 0.01 or size == 0:
        return f"{value:.2g}" if size < 1 else f"{value:.3g}"
    return f"{value:.1e}"

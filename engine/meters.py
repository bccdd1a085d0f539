"""Meters: values gathered between two writes of the metrics, one number for each name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from engine.metrics import require_documented


class Reduction(Enum):
    """What a meter makes of its values."""

    sum = "sum"
    mean = "mean"
    max = "max"
    last = "last"


@dataclass(slots=True)
class _Meter:
    reduction: Reduction
    value: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float) -> None:
        if self.reduction is Reduction.max:
            # NaN must surface, and max() would drop it or keep it by order of arrival.
            seen = self.weight > 0 and (math.isnan(self.value) or self.value > value)
            self.value = self.value if seen else value
        elif self.reduction is Reduction.last:
            self.value = value
        else:
            self.value += value * weight
        self.weight += weight

    def result(self) -> float:
        return self.value / self.weight if self.reduction is Reduction.mean else self.value


class Meters:
    """Values gathered between two writes.

    Example:
        >>> (meters := Meters()).mean("rollout/reward_mean", 1.0)
        >>> meters.mean("rollout/reward_mean", 0.0, weight=3)
        >>> meters.reduce()
        {'rollout/reward_mean': 0.25}
    """

    def __init__(self) -> None:
        self._meters: dict[str, _Meter] = {}

    def sum(self, name: str, value: float) -> None:
        """Add to a total."""
        self._add(Reduction.sum, name, value, 1.0)

    def mean(self, name: str, value: float, weight: float = 1.0) -> None:
        """Add to a mean; ``weight`` says how many values this one stands for, and 0 changes nothing."""
        self._add(Reduction.mean, name, value, weight)

    def max(self, name: str, value: float) -> None:
        """Keep the largest; a NaN stays."""
        self._add(Reduction.max, name, value, 1.0)

    def last(self, name: str, value: float) -> None:
        """Keep the latest."""
        self._add(Reduction.last, name, value, 1.0)

    def reduce(self) -> dict[str, float]:
        """One number per name, in order of names; the meters start anew."""
        reduced = {name: meter.result() for name, meter in sorted(self._meters.items())}
        self._meters.clear()
        return reduced

    def _add(self, reduction: Reduction, name: str, value: float, weight: float) -> None:
        require_documented(name)
        if weight < 0:
            raise ValueError(f"metric {name!r}: weight {weight} is negative, give a count")
        if weight == 0:
            return
        meter = self._meters.setdefault(name, _Meter(reduction))
        if meter.reduction is not reduction:
            raise ValueError(
                f"metric {name!r} is a {meter.reduction.value}, not a {reduction.value}: choose one"
            )
        meter.add(float(value), weight)

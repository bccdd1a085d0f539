"""Means over seeds with their 95 % intervals, by Student's t."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

# 0.975 quantiles of Student's t for 1, 2, ... degrees of freedom.
_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
      2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484,
      2.0452, 2.0423)


def t_quantile(freedom: int) -> float:
    """0.975 quantile; beyond the table its expansion around the normal one, right to 1e-4."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, and where the true one lies with 95 % confidence if seeds scatter normally."""

    mean: float
    low: float | None
    """None: one seed, no interval."""
    high: float | None
    seeds: int

    def mapped(self, function: Callable[[float], float]) -> Interval:
        """Under a function that keeps the order, as exp does."""
        low, high = (None if edge is None else function(edge) for edge in (self.low, self.high))
        return Interval(function(self.mean), low, high, self.seeds)

    def holds(self, value: float) -> bool:
        """``value`` lies inside, or nobody can say: a difference inside the noise."""
        return self.low is None or self.high is None or self.low <= value <= self.high


def interval(values: Sequence[float]) -> Interval | None:
    """Over one value a seed; None without any.

    Example:
        >>> interval([1.0, 2.0, 3.0]).low
        -0.484175...
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    mean, count = fmean(finite), len(finite)
    if count == 1:
        return Interval(mean, None, None, 1)
    half = t_quantile(count - 1) * stdev(finite) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)

"""Every measure of an arm beside the first arm's, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tools.ablation.interval import Interval, interval
from tools.ablation.measures import BRACKET, is_share, value_of

Runs = Mapping[int, Mapping[str, float | None]]
"""Seed -> measures of a run."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure of one arm, over or minus that of the first arm with the same seed."""

    ratio: bool
    """A factor, mean and interval taken of logarithms; else a difference in the measure's own unit."""
    over: Interval

    @property
    def outside(self) -> bool:
        """The 95 % interval does not hold 1, or 0 for a difference; never with one seed."""
        return not self.over.holds(1.0 if self.ratio else 0.0)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"kind": "ratio" if self.ratio else "difference", "mean": self.over.mean, "low": self.over.low,
                "high": self.over.high, "seeds": self.over.seeds, "outside": self.outside}


def differences(runs: Mapping[str, Runs], first: str) -> dict[str, dict[str, Difference]]:
    """Arm -> measure -> its difference to the arm ``first``, where a seed has both.

    A measure whose values are all above 0 gives ratios, the same for every arm; shares, accuracies and what can be 0
    or below give differences.
    """
    found: dict[str, dict[str, Difference]] = {name: {} for name in runs}
    for measure in dict.fromkeys(name for arm in runs.values() for run in arm.values() for name in run):
        if measure in BRACKET:
            continue
        known = [value for arm in runs.values() for run in arm.values()
                 if (value := value_of(run, measure)) is not None]
        ratio = not _bounded(measure) and all(value > 0 for value in known)
        for name in runs:
            if name != first and (over := paired(runs[first], runs[name], measure, ratio)) is not None:
                found[name][measure] = Difference(ratio, over)
    return found


def paired(first: Runs, arm: Runs, measure: str, ratio: bool) -> Interval | None:
    """Over the seeds that have the measure in both; None where none has."""
    values = []
    for seed in sorted(first.keys() & arm.keys()):
        before, after = value_of(first[seed], measure), value_of(arm[seed], measure)
        if before is not None and after is not None:
            values.append(math.log(after / before) if ratio else after - before)
    over = interval(values)
    return over.mapped(math.exp) if over is not None and ratio else over


def _bounded(measure: str) -> bool:
    return is_share(measure) or measure.endswith(("accuracy", "_fraction"))

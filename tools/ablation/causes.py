"""A speed-up taken apart, one switch at a time.

For two neighbours in a chain of arms, seed by seed, in logarithms::

    time to target = samples to target x mean length / tokens per second, and a residual

so that ``faster to the target = speed x length x samples x residual``: what tokens come through faster, what
shorter responses give, what fewer samples give (below 1: what staleness costs), and what is left: rates that
change over the run, evaluation, the first version's start. All five are means over the same seeds, those that
reached the target in both arms, so that the means obey this too; where no seed did, speed and length are means
over all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tools.ablation.arms import ArmConfig
from tools.ablation.differences import Runs, paired
from tools.ablation.interval import Interval, interval

FACTORS = ("speed", "length", "samples", "residual", "time")
"""Parts of a link; ``time`` is their product, measured by itself."""


@dataclass(frozen=True, slots=True)
class Link:
    """What one arm gains over another."""

    arm: str
    against: str
    cause: str
    factors: dict[str, Interval | None]
    """Part -> factor, above 1: faster; None where no seed says."""
    accuracy: Interval | None
    """Difference of the held-out accuracy at the end, paired by seed."""
    whole: bool = False
    """The ends of a chain, not two neighbours."""


def links(arms: Sequence[ArmConfig], runs: Mapping[str, Runs]) -> list[Link]:
    """Every arm that ran with the nearest arm before it that ran, and for every chain of three or more its ends.

    Args:
        arms: all of the ablation, those that were not asked for as well: they stand between others.
        runs: measures by arm; none, or no entry, for one that did not run.
    """
    named = {arm.name: arm for arm in arms}
    ran = [arm for arm in arms if runs.get(arm.name)]
    before, found = {}, []
    for arm in ran:
        against, skipped = _nearest(arm, named, runs)
        before[arm.name] = against
        if against:
            found.append(_link(runs, arm.name, against, _cause(arm, [named[name] for name in skipped])))
    for arm in ran:
        end, length = arm.name, 1
        while before[end]:
            end, length = before[end], length + 1
        if arm.name not in before.values() and length > 2:
            found.append(_link(runs, arm.name, end, "altogether", whole=True))
    return found


def _nearest(arm: ArmConfig, named: Mapping[str, ArmConfig], runs: Mapping[str, Runs]) -> tuple[str, list[str]]:
    """The arm before it that ran, empty if none did, and those in between."""
    skipped, name = [], arm.against
    while name and not runs.get(name):
        skipped.append(name)
        name = named[name].against
    return name, skipped


def _cause(arm: ArmConfig, skipped: Sequence[ArmConfig]) -> str:
    causes = [one.cause or one.name for one in (arm, *skipped)]
    more = ", ".join(causes[1:])
    return f"{causes[0]}, and {more} (no run of {', '.join(one.name for one in skipped)})" if more else causes[0]


def _link(runs: Mapping[str, Runs], arm: str, against: str, cause: str, whole: bool = False) -> Link:
    before, after = runs[against], runs[arm]
    return Link(arm, against, cause, _factors(before, after), paired(before, after, "accuracy", ratio=False), whole)


def _factors(before: Runs, after: Runs) -> dict[str, Interval | None]:
    rows = [_parts(before[seed], after[seed]) for seed in sorted(before.keys() & after.keys())]
    # The means of factors multiply only where all are over the same seeds.
    rows = [row for row in rows if None not in row.values()] or rows
    found: dict[str, Interval | None] = {}
    for name in FACTORS:
        over = interval([value for row in rows if (value := row[name]) is not None])
        found[name] = None if over is None else over.mapped(math.exp)
    return found


def _parts(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> dict[str, float | None]:
    speed = _log_ratio(before, after, "tokens_per_second")
    length, samples, time = (_negative(_log_ratio(before, after, name))
                             for name in ("length_tokens", "samples_to_target", "seconds_to_target"))
    known = [part for part in (time, speed, length, samples) if part is not None]
    residual = known[0] - sum(known[1:]) if len(known) == 4 else None
    return {"speed": speed, "length": length, "samples": samples, "residual": residual, "time": time}


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _log_ratio(before: Mapping[str, float | None], after: Mapping[str, float | None], name: str) -> float | None:
    old, now = before.get(name), after.get(name)
    return math.log(now / old) if old and now else None

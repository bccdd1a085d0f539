"""A speed-up taken apart, one switch at a time.

For two neighbours in a chain of arms, seed by seed, in logarithms::

    time to target = samples to target x mean length / tokens per second, and a residual

so that ``faster to the target = speed x length x samples x residual``: what tokens come through faster, what
shorter responses give, what fewer samples give (below 1: what staleness costs), and what is left: rates that
change over the run, evaluation, the first version's start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tools.ablation.arms import ArmConfig
from tools.ablation.interval import Interval, interval

FACTORS = ("speed", "length", "samples", "residual", "time")
"""Parts of a link; ``time`` is their product, measured by itself."""
Runs = Mapping[int, Mapping[str, float | None]]
"""Seed -> measures of a run."""


@dataclass(frozen=True, slots=True)
class Link:
    """What one arm gains over another."""

    arm: str
    against: str
    cause: str
    factors: dict[str, Interval | None]
    """Part -> factor, above 1: faster; None where no seed says."""


def links(arms: Sequence[ArmConfig], runs: Mapping[str, Runs]) -> list[Link]:
    """Every link between two arms that ran, and for every chain of three or more its ends."""
    known = {arm.name: arm for arm in arms if runs.get(arm.name)}
    found = [Link(arm.name, arm.against, arm.cause or arm.name, _factors(runs[arm.against], runs[arm.name]))
             for arm in known.values() if arm.against in known]
    inner = {arm.against for arm in known.values()}
    for arm in known.values():
        chain = _chain(arm, known)
        if arm.name not in inner and len(chain) > 2:
            found.append(Link(arm.name, chain[-1], "altogether", _factors(runs[chain[-1]], runs[arm.name])))
    return found


def _chain(arm: ArmConfig, known: Mapping[str, ArmConfig]) -> list[str]:
    names = [arm.name]
    while (before := known[names[-1]].against) in known:
        names.append(before)
    return names


def _factors(before: Runs, after: Runs) -> dict[str, Interval | None]:
    rows = [_parts(before[seed], after[seed]) for seed in sorted(before.keys() & after.keys())]
    columns = {name: [row[name] for row in rows if row[name] is not None] for name in FACTORS}
    found: dict[str, Interval | None] = {}
    for name, values in columns.items():
        over = interval([value for value in values if value is not None])
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


def in_words(link: Link, part: str) -> str:
    """A factor as a sentence says it."""
    factor = link.factors[part]
    if factor is None:
        return "not known"
    if factor.low is None or factor.high is None:
        return f"{factor.mean:.2f}x, one seed"
    noise = ", within the noise" if factor.holds(1.0) else ""
    return f"{factor.mean:.2f}x ({factor.low:.2f} to {factor.high:.2f}){noise}"

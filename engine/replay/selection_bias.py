"""The selection-bias meter: what was generated against what was trained, and an alarm where they differ.

Asynchrony can starve prompts: those whose answers are long come back late, are given up, time out in a judge
or turn stale, and the policy learns from the rest as if it were all. The unit here is a group, because the
trajectories of one prompt are alike, while groups are independent. Over a window of groups that were
finished or lost:

- lengths and success: the two-sample Kolmogorov-Smirnov distance between trained and lost groups. The two
  samples are disjoint, so its asymptotic threshold ``sqrt(-ln(a / 2) / 2 * (n + m) / (n m))`` holds at level a,
  conservatively for few or tied values. What it does to training is the distance between trained and
  generated groups, that distance times the lost share ``m / (n + m)``: an alarm wants both, significance and
  an effect of at least ``EFFECT``.
- kinds and tags: under no bias, the lost groups of one kind follow a hypergeometric distribution. Its
  exact upper tail, times the kinds that are compared (Bonferroni), is held against a.
- ages: the same distance and threshold as for lengths, told but without an alarm. A group's age is counted when it
  leaves, and how it leaves decides it: stale groups are old by definition, a failed judge ends a group at
  once, and a trained one has waited for its batch.

Each look at a window raises a false alarm with probability of at most a for each of the first three. That level is
of one look, not of a run, which looks at every update. Groups that a filter dropped on purpose (no spread,
end of run) are not counted: that bias is wanted.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from engine.records.trajectory import DropReason

WINDOW_GROUPS = 512
LEVEL = 0.01
"""Chance of a false alarm of one test at one look."""
EFFECT = 0.05
"""Distance between trained and generated groups below which nothing is said."""
FEWEST = 8
"""Groups of either side below which nothing is tested."""
WANTED = frozenset({DropReason.no_spread, DropReason.end_of_run, DropReason.rollback, DropReason.non_finite})
"""Drops that are a filter's, or that say nothing of the prompt."""
STALE = "stale"
BINS = 16
"""Of the histogram of lengths."""


@dataclass(frozen=True, slots=True)
class LeftGroup:
    """A group that left: trained, or lost."""

    length: float
    """Mean sampled tokens of its trajectories, as far as they came."""
    success: float | None
    """Share judged correct; None: nobody judged it."""
    labels: tuple[str, ...]
    """Its prompt's kind and tags."""
    age: int = 0
    """Versions from its oldest token to when it left."""
    lost: str = ""
    """Why it was not trained; empty: it was."""


def ks_distance(left: Sequence[float], right: Sequence[float]) -> float:
    """Largest difference of two empirical distribution functions, 0 where one is empty.

    Example:
        >>> ks_distance([1.0, 2.0], [2.0, 3.0])
        0.5
    """
    if not left or not right:
        return 0.0
    ours, theirs = Counter(left), Counter(right)
    below_ours = below_theirs = 0
    largest = 0.0
    for value in sorted(ours | theirs):
        below_ours += ours[value]
        below_theirs += theirs[value]
        largest = max(largest, abs(below_ours / len(left) - below_theirs / len(right)))
    return largest


def ks_threshold(n: int, m: int, level: float = LEVEL) -> float:
    """Distance that two samples of these sizes exceed with probability ``level``, if nothing tells them apart."""
    return math.sqrt(-math.log(level / 2.0) / 2.0 * (n + m) / (n * m))


def effect(kept: Sequence[float], gone: Sequence[float]) -> float:
    """Distance between the trained and all that were generated, from the trained and the lost."""
    return ks_distance(kept, gone) * len(gone) / max(len(kept) + len(gone), 1)


def upper_tail(groups: int, of_kind: int, lost: int, lost_of_kind: int) -> float:
    """P(at least ``lost_of_kind`` of ``lost`` draws without replacement are among ``of_kind`` of ``groups``).

    Example:
        >>> upper_tail(4, 2, 2, 2) == 1 / 6
        True
    """
    ways = sum(
        math.comb(of_kind, k) * math.comb(groups - of_kind, lost - k)
        for k in range(lost_of_kind, min(of_kind, lost) + 1)
    )
    return ways / math.comb(groups, lost)


class SelectionBias:
    """Keeps the window; tests it on demand."""

    def __init__(self, window_groups: int = WINDOW_GROUPS) -> None:
        self._groups: deque[LeftGroup] = deque(maxlen=window_groups)
        self._on = False
        self.alarms = 0

    def left(self, group: LeftGroup) -> None:
        """A group left; those that a filter dropped on purpose are not counted."""
        if group.lost not in {reason.value for reason in WANTED}:
            self._groups.append(group)

    def _sides(self) -> tuple[list[LeftGroup], list[LeftGroup]]:
        return ([group for group in self._groups if not group.lost],
                [group for group in self._groups if group.lost])

    def metrics(self) -> dict[str, float]:
        """Shares, means and distances of the window."""
        trained, lost = self._sides()
        if not self._groups:
            return {}
        values = {
            "selection/lost_fraction": len(lost) / len(self._groups),
            "selection/generated_length_mean_tokens": _mean([group.length for group in self._groups]),
            "selection/generated_age_mean_versions": _mean([float(group.age) for group in self._groups]),
            "selection/length_distance": effect(*_lengths(trained, lost)),
            "selection/success_distance": effect(*_successes(trained, lost)),
            "selection/age_distance": effect(*_ages(trained, lost)),
            "selection/kind_share_min": min(self._ratios().values(), default=1.0),
            "selection/alarm": float(bool(self.findings())),
        }
        if trained:
            values["selection/trained_length_mean_tokens"] = _mean([group.length for group in trained])
            values["selection/trained_age_mean_versions"] = _mean([float(group.age) for group in trained])
        return values

    def _ratios(self) -> dict[str, float]:
        """Label -> its share among trained groups over its share among all."""
        trained = self._sides()[0]
        every = Counter(label for group in self._groups for label in group.labels)
        kept = Counter(label for group in trained for label in group.labels)
        share = len(trained) / len(self._groups) if self._groups else 1.0
        return {label: kept[label] / count / share for label, count in every.items() if share}

    def findings(self) -> list[str]:
        """One sentence for each difference that chance does not explain and that matters."""
        trained, lost = self._sides()
        found = []
        if len(trained) >= FEWEST and len(lost) >= FEWEST:
            found += self._distance("lengths", "tokens", *_lengths(trained, lost))
            found += self._distance("success rates", "correct", *_successes(trained, lost))
            found += self._starved_labels(trained, lost)
        return found

    def _distance(self, what: str, unit: str, kept: list[float], gone: list[float]) -> list[str]:
        if min(len(kept), len(gone)) < FEWEST:
            return []
        distance, threshold = ks_distance(kept, gone), ks_threshold(len(kept), len(gone))
        if distance <= threshold or effect(kept, gone) < EFFECT:
            return []
        text = (f"selection bias: {what} of the {len(gone)} groups lost on the way (mean {_mean(gone):.3g} {unit}) "
                f"are not those of the {len(kept)} trained ({_mean(kept):.3g}): distance {distance:.2f}, by chance "
                f"below {threshold:.2f}")
        return [text]

    def _starved_labels(self, trained: list[LeftGroup], lost: list[LeftGroup]) -> list[str]:
        every = Counter(label for group in self._groups for label in group.labels)
        gone = Counter(label for group in lost for label in group.labels)
        total, ratios, found = len(self._groups), self._ratios(), []
        # A label that all groups share can not be starved.
        compared = {label: count for label, count in sorted(every.items()) if count < total}
        for label, count in compared.items():
            chance = upper_tail(total, count, len(lost), gone[label]) * len(compared)
            if chance < LEVEL and 1.0 - ratios[label] >= EFFECT:
                found.append(f"selection bias: {label!r} makes {count / total:.0%} of the generated groups and "
                             f"{(count - gone[label]) / len(trained):.0%} of the trained ones; by chance that "
                             f"happens once in {1.0 / max(chance, 1e-12):.0f} looks")
        return found

    def news(self) -> str:
        """The first sentence of an alarm that was not on at the last look, else nothing."""
        found = self.findings()
        fresh = bool(found) and not self._on
        self._on = bool(found)
        self.alarms += fresh
        return found[0] if fresh else ""

    def summary(self) -> dict[str, object]:
        """For ``summary.json``: numbers of the last window, alarms so far, and what is found now."""
        return {"window_groups": len(self._groups), "alarms": self.alarms, "findings": self.findings(),
                "kind_shares": {label: round(ratio, 4) for label, ratio in sorted(self._ratios().items())},
                "lost": dict(Counter(group.lost for group in self._groups if group.lost)),
                "distributions": self.distributions(), **self.metrics()}

    def distributions(self) -> dict[str, object]:
        """Groups that were generated and that were trained, by length, success rate, age and kind.

        Counts of equal bins from 0 on, their ``width``, the ``distance`` of the two, and ``chance``: what it
        stays below at the level of one look where nothing selects, None of too few groups.
        """
        trained, lost = self._sides()
        lengths = _lengths(trained, lost)
        kept = Counter(label for group in trained for label in group.labels)
        every = Counter(label for group in self._groups for label in group.labels)
        return {
            "length_tokens": _compared(*lengths, math.ceil((max(chain(*lengths), default=0.0) + 1.0) / BINS)),
            "success": _compared(*_successes(trained, lost), 0.1),
            "age_versions": _compared(*_ages(trained, lost), 1.0),
            "kinds": {label: {"generated": count, "trained": kept[label]} for label, count in sorted(every.items())},
        }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _lengths(trained: Sequence[LeftGroup], lost: Sequence[LeftGroup]) -> tuple[list[float], list[float]]:
    return [group.length for group in trained], [group.length for group in lost]


def _successes(trained: Sequence[LeftGroup], lost: Sequence[LeftGroup]) -> tuple[list[float], list[float]]:
    return ([group.success for group in trained if group.success is not None],
            [group.success for group in lost if group.success is not None])


def _ages(trained: Sequence[LeftGroup], lost: Sequence[LeftGroup]) -> tuple[list[float], list[float]]:
    return [float(group.age) for group in trained], [float(group.age) for group in lost]


def _counts(values: Sequence[float], width: float) -> list[int]:
    # 0.3 / 0.1 is a little less than 3.
    bins = Counter(int(value / width + 1e-9) for value in values)
    return [bins[k] for k in range(max(bins, default=-1) + 1)]


def _compared(kept: list[float], gone: list[float], width: float) -> dict[str, object]:
    chance = None
    if min(len(kept), len(gone)) >= FEWEST:
        chance = ks_threshold(len(kept), len(gone)) * len(gone) / (len(kept) + len(gone))
    return {"width": width, "generated": _counts([*kept, *gone], width), "trained": _counts(kept, width),
            "distance": effect(kept, gone), "chance": chance}

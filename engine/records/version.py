"""Policy versions and the only arithmetic on them.

A version is (lineage, number of committed updates). A resume or a rollback starts a new lineage, so no
stamp is ever reused for other weights: everything stamped later than the checkpoint was discarded, hence
a surviving stamp of an older lineage counts updates on the same history.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import StalenessError


@dataclass(frozen=True, slots=True, order=True)
class PolicyVersion:
    """Which weights: ``updates`` committed updates on the history that ends in ``lineage``.

    Example:
        >>> PolicyVersion(0, 3).next()
        PolicyVersion(lineage=0, updates=4)
    """

    lineage: int
    updates: int

    def next(self) -> PolicyVersion:
        """The version that the next committed update makes."""
        return PolicyVersion(self.lineage, self.updates + 1)

    def forked(self, lineage: int | None = None) -> PolicyVersion:
        """The same weights under a new lineage, after a resume or a rollback; None: the next one."""
        lineage = self.lineage + 1 if lineage is None else lineage
        assert lineage > self.lineage, f"lineage {lineage} is not new to {self}"
        return PolicyVersion(lineage, self.updates)

    def __str__(self) -> str:
        return f"{self.lineage}.{self.updates}"


def staleness_versions(trained: PolicyVersion, sampled: PolicyVersion) -> int:
    """Updates between the version being trained and the one that sampled a token, >= 0.

    Raises:
        StalenessError: the sample carries a stamp from the future, which only a lost rollback can cause.

    Example:
        >>> staleness_versions(PolicyVersion(1, 5), PolicyVersion(0, 3))
        2
    """
    if sampled.lineage > trained.lineage or sampled.updates > trained.updates:
        raise StalenessError(
            f"a token stamped {sampled} cannot be trained at {trained}: stamps later than the "
            "checkpoint must be discarded on resume"
        )
    return trained.updates - sampled.updates


def staleness_steps(versions: int, steps_per_update: int) -> int:
    """Optimiser steps between two versions: reported, never bounded.

    Example:
        >>> staleness_steps(2, 4)
        8
    """
    return versions * steps_per_update

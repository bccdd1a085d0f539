from __future__ import annotations

from engine.records.update import UpdateReport
from engine.records.version import PolicyVersion


def test_what_is_not_said_is_empty_and_not_shared() -> None:
    one, other = (UpdateReport(PolicyVersion(0, 1), False, 0, {}) for _ in range(2))
    assert (one.metrics, one.staleness, one.busy, one.weights_digest) == ({}, {}, (0.0, 0.0), "")
    assert one.metrics is not other.metrics

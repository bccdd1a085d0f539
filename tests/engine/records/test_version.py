from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import StalenessError
from engine.records.version import PolicyVersion, staleness_steps, staleness_versions

COUNTS = st.integers(0, 50)


def test_next_and_forked() -> None:
    assert PolicyVersion(2, 5).next() == PolicyVersion(2, 6)
    assert PolicyVersion(2, 5).forked() == PolicyVersion(3, 5)
    assert PolicyVersion(2, 5).forked(7) == PolicyVersion(7, 5)
    with pytest.raises(AssertionError, match="lineage 2 is not new"):
        PolicyVersion(2, 5).forked(2)
    assert str(PolicyVersion(2, 5)) == "2.5"


@given(COUNTS, COUNTS, COUNTS)
def test_staleness_counts_updates_on_one_history(lineage: int, sampled: int, age: int) -> None:
    trained = PolicyVersion(lineage, sampled + age)
    for earlier in range(lineage + 1):
        assert staleness_versions(trained, PolicyVersion(earlier, sampled)) == age


@pytest.mark.parametrize("sampled", [PolicyVersion(1, 6), PolicyVersion(2, 5), PolicyVersion(0, 6)])
def test_a_stamp_from_the_future_raises(sampled: PolicyVersion) -> None:
    with pytest.raises(StalenessError, match=str(sampled)):
        staleness_versions(PolicyVersion(1, 5), sampled)


def test_staleness_in_steps() -> None:
    assert staleness_steps(3, 4) == 12

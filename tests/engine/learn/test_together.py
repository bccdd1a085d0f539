"""What ranks say of an update, as if others had spoken."""

from __future__ import annotations

from typing import Any

import pytest

from engine.learn.packing import blank_row, pack
from engine.learn.together import added_up, shares
from engine.models.ranks import ALONE, Ranks
from tests.engine.learn.test_packing import sample


class Heard(Ranks):
    """Two ranks, of which the other one says what it is given."""

    def __init__(self, other: Any) -> None:
        super().__init__(0, 2)
        self.other = other

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]


def test_sums_are_added_and_one_that_is_not_finite_is_enough() -> None:
    assert added_up(Heard([True, {"loss": 2.0, "tokens": 3.0}]), {"loss": 1.0}, True) == (
        {"loss": 3.0, "tokens": 3.0}, True)
    assert added_up(Heard([False, {}]), {"loss": 1.0}, True) == ({"loss": 1.0}, False)
    assert added_up(Heard([True, {}]), {}, False) == ({}, False)
    assert added_up(ALONE, {"loss": 1.0}, True) == ({"loss": 1.0}, True)


def test_shares_count_real_rows_and_seconds() -> None:
    ranks = Heard([40, 0.25])
    ranks.waited_s = 0.5
    (row,) = pack([sample(0, 4, 6)], 64)
    found = shares(ranks, [[row, blank_row()], [row]])
    assert found == pytest.approx({
        "learn/rank_tokens_min": 20.0, "learn/rank_tokens_max": 40.0,
        "learn/rank_wait_seconds_min": 0.25, "learn/rank_wait_seconds_max": 0.5,
    })
    assert ranks.waited_s == 0.0
    assert shares(ALONE, [[row]]) == {}

from __future__ import annotations

import pytest

from engine.generate.token_engine import Arrival, Stay
from engine.records.version import PolicyVersion
from tests.small_models import ask, random_prompt

FIRST, SECOND, THIRD = (PolicyVersion(0, updates) for updates in range(3))


def stay() -> Stay:
    held = Stay(ask(3, random_prompt(0, 5), temperature=0.7), "3.0.1", 0, {"0.0": (FIRST, FIRST)})
    held.tokens += [7, 8, 9, 10]
    held.logprobs += [-0.5, -0.25, -1.0, -2.0]
    return held


def test_segments_are_split_where_the_engine_changed_its_version() -> None:
    held = stay()
    held.swapped(SECOND, kept=True)
    held.swapped(THIRD, kept=False)
    found = list(held.segments([("0.0", 1), ("0.1", 2), ("0.2", 1)]))
    assert [s.token_ids.tolist() for s in found] == [[7], [8, 9], [10]]
    assert [s.behaviour_logprob.tolist() for s in found] == [[-0.5], [-0.25, -1.0], [-2.0]]
    assert [(s.version, s.oldest_key_version) for s in found] == [(FIRST, FIRST), (SECOND, FIRST), (THIRD, THIRD)]
    assert {s.temperature for s in found} == {0.7}


def test_what_was_sampled_beyond_a_loop_belongs_to_no_segment() -> None:
    held = stay()
    held.swapped(SECOND, kept=False)
    assert [s.num_sampled for s in held.segments([("0.0", 3), ("0.1", 5)])] == [3, 1]
    assert [s.num_sampled for s in held.segments([("0.0", 4), ("0.1", 5)])] == [4]


def test_a_token_without_a_version_is_no_token() -> None:
    with pytest.raises(AssertionError, match="versions of 3 tokens, but 4 came"):
        list(stay().segments([("0.0", 3)]))


def test_two_arrivals_are_one() -> None:
    whole = Arrival("k", [1], [-1.0], 4).followed_by(Arrival("k", [2, 3], [-2.0, -3.0], 4, (("0.0", 3),)))
    assert whole == Arrival("k", [1, 2, 3], [-1.0, -2.0, -3.0], 4, (("0.0", 3),))

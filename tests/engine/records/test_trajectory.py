from __future__ import annotations

import math

import numpy as np
import pytest

from engine.errors import RecordError
from engine.records.trajectory import FinishReason, Group, Outcome, Segment, Trajectory, Verdict
from engine.records.version import PolicyVersion


def segment(tokens: list[int], sampled: list[bool] | None = None, updates: int = 0) -> Segment:
    flags = [True] * len(tokens) if sampled is None else sampled
    version = PolicyVersion(0, updates)
    return Segment(np.array(tokens, np.int32), np.array(flags, bool),
                   np.zeros(len(flags), np.float32), version, 1.0, version)


def test_a_segment_has_one_flag_and_logprob_per_token() -> None:
    with pytest.raises(RecordError, match="2 tokens has 1 sampled"):
        segment([1, 2], [True])
    version = PolicyVersion(0, 0)
    with pytest.raises(RecordError, match="3 log-probs"):
        Segment(np.zeros(2, np.int32), np.ones(2, bool), np.zeros(3, np.float32), version, 1.0, version)


def test_length_counts_sampled_tokens_only() -> None:
    grown = Trajectory(1, 0, "p").extended((segment([4, 5], [True, False]), segment([6])), None)
    assert grown.length == 2
    assert grown.token_ids.tolist() == [4, 5, 6]
    assert grown.segments[0].num_sampled == 1


def test_an_empty_trajectory_has_no_tokens_and_no_version() -> None:
    empty = Trajectory(1, 0, "p")
    assert (empty.length, empty.oldest_version) == (0, None)
    assert empty.token_ids.dtype == np.int32
    assert len(empty.token_ids) == 0


def test_the_oldest_version_is_the_one_with_fewest_updates() -> None:
    grown = Trajectory(1, 0, "p", segments=(segment([1], updates=4), segment([2], updates=3)))
    assert grown.oldest_version == PolicyVersion(0, 3)


def test_growing_keeps_what_was_there_and_adds_savings() -> None:
    first = Trajectory(1, 0, "p").extended((segment([1]),), None, saved_tokens=2)
    second = first.extended((segment([2]),), FinishReason.stop, saved_tokens=3)
    assert first.token_ids.tolist() == [1]
    assert second.token_ids.tolist() == [1, 2]
    assert (second.finish_reason, second.saved_tokens) == (FinishReason.stop, 5)
    with pytest.raises(RecordError, match="finished with stop"):
        second.extended((), None)


def test_a_failed_verdict_is_not_reward_0() -> None:
    verdict = Verdict.failed("math", "gone", Outcome.timeout)
    assert math.isnan(verdict.score)
    assert not verdict.correct
    assert (verdict.outcome, verdict.reason) == (Outcome.timeout, "gone")


def test_a_group_needs_a_verdict_for_every_member() -> None:
    with pytest.raises(RecordError, match="1 trajectories and 0 verdicts"):
        Group(0, "p", np.zeros(1, np.int32), (Trajectory(1, 0, "p"),), ())

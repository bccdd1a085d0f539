from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config.rewards import LengthRewardConfig, OverlongConfig, RewardConfig
from engine.records.trajectory import FinishReason, Group, Segment, Trajectory, Verdict
from engine.records.version import PolicyVersion
from engine.rewards.length_penalty import length_rewards, overlong_punishment, total_rewards

members = st.lists(st.tuples(st.integers(1, 10_000), st.booleans()), min_size=1, max_size=12)


def group_of(lengths: list[int], scores: list[float]) -> Group:
    version = PolicyVersion(0, 0)
    trajectories = []
    for index, length in enumerate(lengths):
        ids = np.zeros(length + 3, np.int32)
        sampled = np.arange(length + 3) < length  # text that was not sampled has no length
        segment = Segment(ids, sampled, np.zeros(length + 3, np.float32), version, 1.0, version)
        trajectories.append(Trajectory(index, 0, "p", 0, (segment,), FinishReason.stop))
    verdicts = tuple(Verdict(score, score >= 1.0, "", "math") for score in scores)
    return Group(0, "p", np.zeros(1, np.int32), tuple(trajectories), verdicts)


@given(members)
def test_length_rewards_stay_in_range_and_never_favour_a_wrong_answer(group):
    lengths, correct = [length for length, _ in group], [right for _, right in group]
    rewards = length_rewards(lengths, correct)
    assert all(-0.5 <= reward <= 0.5 for reward in rewards)
    assert all(reward <= 0.0 for reward, right in zip(rewards, correct, strict=True) if not right)
    if len(set(lengths)) == 1:
        assert rewards == [0.0] * len(lengths)


@given(members)
def test_the_shortest_correct_answer_earns_half_and_shorter_is_never_worse(group):
    lengths, correct = [length for length, _ in group], [right for _, right in group]
    rewards = length_rewards(lengths, correct)
    if len(set(lengths)) > 1:
        for length, right, reward in zip(lengths, correct, rewards, strict=True):
            if length == min(lengths):
                assert reward == (0.5 if right else 0.0)
            if length == max(lengths):
                assert reward == -0.5
    ordered = sorted(pair for pair in zip(lengths, rewards, correct, strict=True) if pair[2])
    assert all(a[1] >= b[1] for a, b in pairwise(ordered))


def test_the_range_spans_wrong_answers_too():
    assert length_rewards([10, 20, 30], [False, True, False]) == [0.0, 0.0, -0.5]
    assert length_rewards([], []) == []


@pytest.mark.parametrize(
    ("length", "expected"), [(1, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (130, -1.0)]
)
def test_overlong_punishment_is_linear_within_the_buffer(length, expected):
    assert overlong_punishment(length, 100, 20) == pytest.approx(expected)
    assert overlong_punishment(length, 100, 0) == 0.0


def test_the_length_reward_is_a_step_at_the_warm_up():
    config = RewardConfig(length=LengthRewardConfig(weight=2.0, warmup_updates=3))
    group = group_of([2, 4, 6], [1.0, 0.25, 0.0])
    assert total_rewards(group, config, updates=2, max_response_tokens=64) == [1.0, 0.25, 0.0]
    assert total_rewards(group, config, updates=3, max_response_tokens=64) == [2.0, 0.25, -1.0]
    assert total_rewards(group, config, updates=9, max_response_tokens=64) == [2.0, 0.25, -1.0]


def test_overlong_punishment_adds_with_its_factor():
    config = RewardConfig(overlong=OverlongConfig(buffer_tokens=4, factor=0.5))
    group = group_of([4, 8, 10], [1.0, 1.0, 0.0])
    assert total_rewards(group, config, updates=0, max_response_tokens=10) == [1.0, 0.75, -0.5]

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.config.learning import ClippedConfig, MirrorDescentConfig, PositivesConfig
from engine.config.rewards import LengthRewardConfig, RewardConfig
from engine.config.schedule import SegmentsInLoss
from engine.errors import NonFiniteError, StalenessError
from engine.learn.batch import Accounts, LossRule, samples_of
from engine.learn.packing import Sample
from engine.losses.objective import Loss, build_loss
from engine.records.trajectory import FinishReason, Group, Verdict
from engine.records.version import PolicyVersion

RULE = LossRule(PolicyVersion(0, 5), 9, SegmentsInLoss.within_bound, mask_stale=False, mask_truncated=False,
                max_response_tokens=20)
VERSIONS = [PolicyVersion(0, updates) for updates in (2, 4, 5)]


def split(groups: list[Group], rule: LossRule = RULE, loss: Loss | None = None,
          reward: RewardConfig | None = None) -> tuple[list[list[Sample]], Accounts]:
    accounts = Accounts()
    loss = loss or build_loss(MirrorDescentConfig())
    return samples_of(groups, loss, reward or RewardConfig(), rule, accounts), accounts


def carried(samples: list[Sample]) -> list[int]:
    return [int(sample.carries_loss.sum()) for sample in samples]


def test_a_sample_holds_what_its_segments_say(group: Callable[..., Group]) -> None:
    one = group(2, (0.0, 1.0), (7, 4), temperature=0.5, unsampled=True, versions=VERSIONS)
    (samples,), _ = split([one])
    for sample, trajectory in zip(samples, one.trajectories, strict=True):
        assert sample.prompt_tokens is one.prompt_tokens
        assert sample.response.tolist() == trajectory.token_ids.tolist()
        assert int(sample.carries_loss.sum()) == trajectory.length
        assert set(sample.inverse_temperature.tolist()) == {2.0}
        assert sample.group == 2
    assert samples[0].carries_loss.tolist() == [True, False, True, True, True, False, True]
    assert samples[0].staleness is not None
    assert samples[0].staleness.tolist() == [3, 3, 3, 1, 1, 1, 0]
    assert [sample.advantage for sample in samples] == [-0.5, 0.5]


def test_a_temperature_of_each_segment(group: Callable[..., Group]) -> None:
    one = group(0, (0.0,), (5,))
    first, second = one.trajectories[0].segments
    mixed = replace(one.trajectories[0], segments=(first, replace(second, temperature=2.0)))
    ((sample,),), _ = split([replace(one, trajectories=(mixed,))])
    np.testing.assert_allclose(sample.inverse_temperature, [1.25, 1.25, 1.25, 0.5, 0.5])


def test_the_baseline_is_that_of_total_rewards(group: Callable[..., Group]) -> None:
    reward = RewardConfig(length=LengthRewardConfig(weight=0.5, warmup_updates=5))
    one = group(0, (1.0, 1.0), (4, 8), versions=VERSIONS[:1])
    (samples,), accounts = split([one], reward=reward)
    assert [sample.advantage for sample in samples] == [0.25, -0.25]
    assert accounts.rewards == [1.25, 0.75]
    assert accounts.zero_spread_groups == 0
    (samples,), accounts = split([one], replace(RULE, version=PolicyVersion(0, 4)), reward=reward)
    assert [sample.advantage for sample in samples] == [0.0, 0.0]
    assert accounts.zero_spread_groups == 1


def test_stale_tokens_raise_or_are_masked(group: Callable[..., Group]) -> None:
    one = group(0, (0.0, 1.0), (9, 2), versions=VERSIONS)
    with pytest.raises(StalenessError, match=r"trajectory 0 holds tokens 3 versions old at 0\.5.* of 1"):
        split([one], replace(RULE, max_staleness=1))
    (samples,), accounts = split([one], replace(RULE, max_staleness=1, mask_stale=True))
    assert carried(samples) == [6, 0]
    assert samples[0].carries_loss.tolist() == [False] * 3 + [True] * 6
    assert accounts.masked == {"stale": 5}
    (samples,), accounts = split([one], replace(RULE, max_staleness=3))
    assert carried(samples) == [9, 2]
    assert not accounts.masked


def test_a_stamp_from_the_future_is_refused(group: Callable[..., Group]) -> None:
    with pytest.raises(StalenessError, match="cannot be trained"):
        split([group(0, (0.0, 1.0), (3, 3), versions=[PolicyVersion(0, 6)])])


def test_an_older_lineage_counts_on_the_same_history(group: Callable[..., Group]) -> None:
    one = group(0, (0.0, 1.0), (3, 3), versions=[PolicyVersion(0, 4)])
    (samples,), _ = split([one], replace(RULE, version=PolicyVersion(3, 5)))
    assert samples[0].staleness is not None
    assert samples[0].staleness.tolist() == [1, 1, 1]


def test_only_the_last_round_of_the_group_carries_loss_where_asked(group: Callable[..., Group]) -> None:
    one = group(0, (0.0, 1.0), (9, 4), versions=VERSIONS)
    (samples,), accounts = split([one], replace(RULE, segments=SegmentsInLoss.current))
    assert carried(samples) == [3, 0], "the sibling finished a round earlier"
    assert accounts.masked == {"earlier_round": 10}


def test_truncated_responses_are_masked_where_asked(group: Callable[..., Group]) -> None:
    cut = group(0, (0.0, 1.0), (3, 4), finish_reason=FinishReason.length)
    whole = group(1, (0.0, 1.0), (3, 4))
    batches, accounts = split([cut, whole], replace(RULE, mask_truncated=True))
    assert [carried(samples) for samples in batches] == [[0, 0], [3, 4]]
    assert accounts.masked == {"overlong": 7}


def test_what_the_loss_does_not_select_is_masked(group: Callable[..., Group]) -> None:
    one = group(0, (1.0, 0.0, 1.0), (3, 4, 5))
    (samples,), accounts = split([one], loss=build_loss(PositivesConfig()))
    assert carried(samples) == [3, 0, 5]
    assert accounts.masked == {"not_selected": 4}


@pytest.mark.parametrize("loss", [MirrorDescentConfig(), PositivesConfig(), ClippedConfig()])
@pytest.mark.parametrize("segments", list(SegmentsInLoss))
@pytest.mark.parametrize("mask_truncated", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_every_token_is_carried_or_masked_once(
    group: Callable[..., Group], loss: Any, segments: SegmentsInLoss, mask_truncated: bool, skip: bool
) -> None:
    every = [
        group(0, (1.0, 0.0, 0.0), (5, 9, 3), versions=VERSIONS),
        group(1, (1.0, 1.0, 1.0), (4, 6, 2), versions=VERSIONS[1:], finish_reason=FinishReason.length),
        group(2, (0.5, 1.0, 0.0), (12, 1, 7), versions=VERSIONS[2:], unsampled=True),
    ]
    rule = replace(RULE, max_staleness=1, mask_stale=True, segments=segments, mask_truncated=mask_truncated)
    batches, accounts = split(every, rule, build_loss(loss))
    kept = accounts.settle([sample for samples in batches for sample in samples], skip)
    delivered = sum(trajectory.length for one in every for trajectory in one.trajectories)
    assert accounts.carried + accounts.masked.total() == delivered
    assert accounts.carried == sum(carried(kept)) == accounts.staleness.total()
    assert all(accounts.masked.values())
    assert max(accounts.staleness, default=0) <= 1


def test_settling_skips_what_has_no_advantage(groups: list[Group]) -> None:
    batches, accounts = split(groups)
    kept = accounts.settle(batches[1] + batches[3], skip_zero_advantage=True)
    assert kept == batches[3]
    assert accounts.masked == {"zero_advantage": 12}
    assert (accounts.carried, dict(accounts.staleness)) == (20, {5: 20})
    assert accounts.settle(batches[1], skip_zero_advantage=False) == batches[1]
    assert accounts.carried == 32


def test_a_reward_that_is_not_finite_is_refused(group: Callable[..., Group]) -> None:
    one = replace(group(4, (0.0,), (3,)), verdicts=(Verdict(float("inf"), False, "", "math"),))
    with pytest.raises(NonFiniteError, match="group 4 has rewards"):
        split([one])


def test_a_response_without_tokens_is_fine(group: Callable[..., Group]) -> None:
    (samples,), accounts = split([group(0, (0.0, 1.0), (0, 3))])
    assert carried(samples) == [0, 3]
    assert len(accounts.settle(samples, False)) == 2

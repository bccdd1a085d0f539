from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from engine.config.rewards import LengthRewardConfig, RewardConfig
from engine.config.rollout import RolloutConfig
from engine.errors import RecordError
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Outcome, Segment, Verdict
from engine.records.version import PolicyVersion
from engine.records.work import Delivery, GeneratorReport
from engine.replay.buffer import ReplayBuffer

ROLLOUT = RolloutConfig(samples_per_prompt=2, max_response_tokens=20, temperature=0.5)
PROMPT = Prompt.ask("p", "1 + 1?", "2")
TOKENS = np.array([7, 8], np.int32)


def verdict(score: float, correct: bool | None = None, outcome: Outcome = Outcome.ok) -> Verdict:
    return Verdict(score, score >= 1.0 if correct is None else correct, "", "math", outcome=outcome)


def buffer(reward: RewardConfig | None = None, budget: int | None = None, groups: int = 1) -> ReplayBuffer:
    """Groups 0, 1, ... of two trajectories each: 0 and 1, 2 and 3, ..."""
    replay = ReplayBuffer(ROLLOUT, reward or RewardConfig(), budget)
    for group in range(groups):
        replay.admit(group, PROMPT, TOKENS, (2 * group, 2 * group + 1))
    return replay


def segment(length: int, updates: int = 0, start: int = 0, sampled: bool = True) -> Segment:
    version = PolicyVersion(0, updates)
    return Segment(np.arange(start, start + length, dtype=np.int32), np.full(length, sampled),
                   np.full(length, -0.5, np.float32), version, 0.5, version)


def report(generator: str, *deliveries: Delivery) -> GeneratorReport:
    return GeneratorReport(generator, deliveries, PolicyVersion(0, 0), "d")


def finish(replay: ReplayBuffer, lengths: dict[int, int]) -> None:
    replay.checkout("g", list(lengths))
    replay.deliver(report("g", *(
        Delivery(key, 0, (segment(length),), FinishReason.stop) for key, length in lengths.items()
    )))


def test_a_request_asks_for_what_the_rollout_says() -> None:
    first, second = buffer(budget=6).checkout("g", [1, 0])
    assert (first.trajectory_id, second.trajectory_id) == (1, 0)
    assert (first.max_response_tokens, first.round_budget_tokens, first.temperature) == (20, 6, 0.5)
    assert first.prompt_tokens.tolist() == [7, 8]
    assert first.generated.tolist() == []
    assert buffer().checkout("g", [0])[0].round_budget_tokens is None


def test_a_cut_trajectory_goes_on_where_it_was() -> None:
    replay = buffer()
    replay.checkout("g", [0])
    (progress,) = replay.deliver(report("g", Delivery(0, 0, (segment(3), segment(2, 1, 3)), None)))
    assert (progress.new_tokens, progress.length, progress.finish_reason) == (5, 5, None)
    assert (progress.num_segments, progress.num_versions) == (2, 2)
    (request,) = replay.checkout("h", [0])
    assert request.generated.tolist() == [0, 1, 2, 3, 4]
    last = Delivery(0, 0, (segment(1, 2, 5), segment(4, 2, sampled=False)), FinishReason.repetition, 9)
    (progress,) = replay.deliver(report("h", last))
    assert (progress.new_tokens, progress.length) == (1, 6)
    assert (progress.oldest_version, progress.num_versions) == (PolicyVersion(0, 0), 3)
    assert (progress.finish_reason, progress.saved_tokens) == (FinishReason.repetition, 9)


def test_only_the_holder_of_the_lease_delivers() -> None:
    replay = buffer()
    replay.checkout("g", [0])
    replay.checkout("h", [0])
    late = Delivery(0, 0, (segment(3),), FinishReason.stop)
    assert replay.deliver(report("g", late)) == ()
    assert replay.deliver(report("h", Delivery(0, 1, (segment(2),), FinishReason.stop)))[0].length == 2
    assert replay.deliver(report("h", Delivery(0, 1, (segment(2),), FinishReason.stop))) == ()
    assert replay.deliver(report("h", Delivery(99, 0, (segment(2),), FinishReason.stop))) == ()
    assert replay.fenced == 3
    assert replay.metrics()["replay/fenced_deliveries"] == 3.0


def test_a_trajectory_whose_holder_died_is_tried_with_another_stream() -> None:
    replay = buffer()
    assert replay.checkout("g", [0])[0].attempt == 0
    assert replay.checkout("g", [0])[0].attempt == 1
    assert replay.deliver(report("g", Delivery(0, 0, (segment(3),), None))) == ()
    replay.deliver(report("g", Delivery(0, 1, (segment(3),), None)))
    assert replay.checkout("g", [0])[0].attempt == 1, "a cut is no death"


def test_what_is_finished_or_known_is_refused() -> None:
    replay = buffer()
    finish(replay, {0: 3})
    with pytest.raises(RecordError, match="trajectory 0 is finished"):
        replay.checkout("g", [0])
    with pytest.raises(RecordError, match="admitted before"):
        replay.admit(0, PROMPT, TOKENS, (8, 9))
    with pytest.raises(RecordError, match="admitted before"):
        replay.admit(5, PROMPT, TOKENS, (1, 9))


def test_judging_sees_finished_trajectories_with_their_prompt() -> None:
    replay = buffer()
    finish(replay, {0: 3})
    ((prompt, trajectory),) = replay.to_judge([0])
    assert prompt is PROMPT
    assert (trajectory.trajectory_id, trajectory.length) == (0, 3)
    with pytest.raises(RecordError, match="trajectory 1 is unfinished"):
        replay.to_judge([1])


def test_groups_are_taken_sorted_and_leave() -> None:
    replay = buffer(groups=3)
    replay.admit(9, PROMPT, TOKENS, (31, 30))
    for ids in ({4: 1, 5: 2}, {31: 3, 30: 4}, {0: 5, 1: 6}):
        finish(replay, ids)
        replay.judged({key: verdict(float(key)) for key in ids})
    groups = replay.take([9, 0, 2], updates=3)
    assert [group.group_id for group in groups] == [0, 2, 9]
    assert [t.trajectory_id for t in groups[2].trajectories] == [30, 31]
    assert [v.score for v in groups[2].verdicts] == [30.0, 31.0]
    assert groups[2].prompt_tokens is TOKENS
    assert replay.metrics()["replay/groups"] == 1.0
    with pytest.raises(KeyError):
        replay.to_judge([0])


def test_an_unjudged_group_is_not_taken() -> None:
    replay = buffer(groups=2)
    finish(replay, {0: 1, 1: 1, 2: 1, 3: 1})
    replay.judged({0: verdict(1.0), 1: verdict(0.0), 2: verdict(1.0), 3: Verdict.failed("math", "gone")})
    with pytest.raises(RecordError, match=r"group 1 lacks verdicts on \[3\]"):
        replay.take([0, 1], updates=1)
    assert len(replay.take([0], updates=1)) == 1


def test_a_dropped_group_says_what_went_with_it_and_ends_its_leases() -> None:
    replay = buffer(groups=2)
    finish(replay, {0: 3})
    replay.checkout("g", [1, 2])
    assert replay.forget(0) == {0: 3, 1: 0}
    assert replay.deliver(report("g", Delivery(1, 0, (segment(2),), FinishReason.stop))) == ()
    assert replay.deliver(report("g", Delivery(2, 0, (segment(2),), FinishReason.stop)))
    assert replay.judged({0: verdict(1.0)}).no_spread == ()


@pytest.mark.parametrize(("scores", "lengths", "weight", "flat"), [
    ((1.0, 1.0), (4, 8), 0.0, (0,)),
    ((1.0, 0.0), (4, 8), 0.0, ()),
    ((1.0, 1.0), (4, 8), 0.5, ()),
    ((1.0, 1.0), (4, 4), 0.5, (0,)),
    ((0.0, 0.0), (4, 8), 0.5, ()),
])
def test_spread_is_that_of_total_rewards(scores: tuple[float, ...], lengths: tuple[int, ...], weight: float,
                                         flat: tuple[int, ...]) -> None:
    replay = buffer(RewardConfig(length=LengthRewardConfig(weight=weight)))
    finish(replay, dict(enumerate(lengths)))
    assert replay.judged({0: verdict(scores[0])}).no_spread == (), "not before the group is complete"
    assert replay.judged({1: verdict(scores[1])}).no_spread == flat


def test_the_length_reward_joins_the_total_after_its_warm_up() -> None:
    replay = buffer(RewardConfig(length=LengthRewardConfig(weight=0.5, warmup_updates=3)), groups=2)
    finish(replay, {0: 2, 1: 4, 2: 2, 3: 4})
    assert replay.judged({0: verdict(1.0), 1: verdict(1.0)}).no_spread == (0,)
    replay.take([0], updates=3)
    assert replay.judged({2: verdict(1.0), 3: verdict(1.0)}).no_spread == ()


def test_a_judge_that_failed_is_told_and_not_stored() -> None:
    replay = buffer()
    finish(replay, {0: 2, 1: 2})
    told = replay.judged({1: Verdict.failed("math", "late", Outcome.timeout), 0: verdict(0.0)})
    assert [(item.trajectory_id, item.outcome) for item in told.items] == [
        (0, Outcome.ok), (1, Outcome.timeout),
    ]
    assert told.no_spread == ()
    assert replay.judged({1: verdict(0.0)}).no_spread == (0,)


def transported(state: dict[str, Any]) -> Any:
    return msgpack.unpackb(msgpack.packb(state))


def test_a_resume_restores_everything_but_leases() -> None:
    replay = buffer(groups=3)
    finish(replay, {0: 3, 1: 4})
    replay.judged({0: verdict(1.0), 1: verdict(0.0)})
    replay.checkout("g", [2, 4])
    replay.deliver(report("g", Delivery(2, 0, (segment(5), segment(1, 1, 5)), None)))
    replay.deliver(report("g", Delivery(2, 0, (segment(5),), None)))
    state = replay.state_dict()
    assert isinstance(state["held"], bytes)

    again = ReplayBuffer(ROLLOUT, RewardConfig(), None)
    again.load_state_dict(transported(state))
    assert again.metrics() == replay.metrics()
    assert again.fenced == 1
    assert again.deliver(report("g", Delivery(4, 0, (segment(2),), FinishReason.stop))) == ()
    requests = {request.trajectory_id: request for request in again.checkout("h", [2, 3, 4, 5])}
    assert requests[2].generated.tolist() == [0, 1, 2, 3, 4, 5]
    assert all(request.attempt == 0 for request in requests.values())
    (group,) = again.take([0], updates=1)
    (expected,) = replay.take([0], updates=1)
    assert group.verdicts == expected.verdicts
    assert group.prompt_tokens.tolist() == [7, 8]
    assert group.prompt_tokens.dtype == np.int32
    for one, other in zip(group.trajectories, expected.trajectories, strict=True):
        assert one.finish_reason is other.finish_reason
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.segments[0].behaviour_logprob.dtype == np.float32


def test_a_rollback_ends_the_leases_that_were_out() -> None:
    replay = buffer()
    state = transported(replay.state_dict())
    replay.checkout("g", [0])
    replay.load_state_dict(state)
    assert replay.deliver(report("g", Delivery(0, 0, (segment(2),), FinishReason.stop))) == ()
    assert replay.checkout("h", [0])[0].attempt == 0


def test_the_version_is_part_of_the_state() -> None:
    reward = RewardConfig(length=LengthRewardConfig(weight=0.5, warmup_updates=3))
    replay = buffer(reward, groups=2)
    finish(replay, {0: 2, 1: 4, 2: 2, 3: 4})
    replay.judged({0: verdict(1.0), 1: verdict(1.0)})
    replay.take([0], updates=3)
    again = ReplayBuffer(ROLLOUT, reward, None)
    again.load_state_dict(transported(replay.state_dict()))
    assert again.judged({2: verdict(1.0), 3: verdict(1.0)}).no_spread == ()


def test_metrics_count_what_is_held() -> None:
    replay = buffer(groups=2)
    finish(replay, {0: 3})
    assert replay.metrics() == {
        "replay/groups": 2.0, "replay/unfinished_trajectories": 3.0, "replay/tokens": 3.0,
        "replay/fenced_deliveries": 0.0,
    }
    replay.close()
    assert replay.metrics()["replay/groups"] == 0.0

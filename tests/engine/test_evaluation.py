from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.config.rollout import RolloutConfig
from engine.errors import RecordError
from engine.evaluation import answer_id, evaluation_requests, pass_at_k, score
from engine.ops.sample import random_key
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Outcome, Segment, Verdict
from engine.records.version import PolicyVersion
from engine.records.work import Delivery

VERSION = PolicyVersion(0, 4)
ROLLOUT = RolloutConfig(max_response_tokens=12)
TOKENS = [np.array([1, 2, 3], np.int32), np.array([4], np.int32)]
PROMPTS = [Prompt.ask("a", "one?", "1"), Prompt.ask("b", "two?", "2")]
RIGHT, WRONG = Verdict(1.0, True, "", "math"), Verdict(0.0, False, "", "math")


def delivery(key: int, length: int, reason: FinishReason | None = FinishReason.stop,
             version: PolicyVersion = VERSION) -> Delivery:
    segment = Segment(np.full(length, -key, np.int32), np.ones(length, bool), np.zeros(length, np.float32),
                      version, 0.0, version)
    return Delivery(key, 0, (segment,), reason)


def decode(tokens: NDArray[np.int32]) -> str:
    return ",".join(map(str, tokens.tolist()))


def scored(verdicts: dict[int, Verdict], samples: int, **options: Any) -> Any:
    deliveries = options.pop("deliveries", {key: delivery(key, 2) for key in verdicts})
    return score(PROMPTS, deliveries, verdicts, version=VERSION, samples=samples, decode=decode, **options)


def test_one_greedy_request_per_prompt_then_its_samples() -> None:
    requests = evaluation_requests(TOKENS, ROLLOUT, samples=2, temperature=0.8, first_id=-1)
    assert [request.trajectory_id for request in requests] == [-1, -2, -3, -4, -5, -6]
    assert [request.temperature for request in requests] == [0.0, 0.8, 0.8, 0.0, 0.8, 0.8]
    assert [len(request.prompt_tokens) for request in requests] == [3, 3, 3, 1, 1, 1]
    for request in requests:
        assert request.max_response_tokens == 12
        assert request.round_budget_tokens is None
        assert len(request.generated) == 0
        assert request.attempt == 0


def test_ids_are_negative_and_those_of_answer_id() -> None:
    requests = evaluation_requests(TOKENS, ROLLOUT, samples=3, temperature=1.0, first_id=-100)
    ids = [answer_id(index, sample, 3, -100) for index in range(2) for sample in range(4)]
    assert [request.trajectory_id for request in requests] == ids
    assert max(ids) == -100
    assert len(set(ids)) == 8
    with pytest.raises(AssertionError, match="negative"):
        answer_id(0, 0, 3, first_id=0)
    with pytest.raises(AssertionError, match="temperature"):
        evaluation_requests(TOKENS, ROLLOUT, samples=1, temperature=0.0)


def test_random_keys_take_negative_ids_and_meet_no_trajectory() -> None:
    keys = {random_key(3, number, 0) for number in range(-200, 200)}
    assert len(keys) == 400
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_pass_at_k_is_the_mean_over_all_choices() -> None:
    for samples, correct in itertools.product(range(1, 7), range(7)):
        for k in range(1, samples + 1):
            if correct <= samples:
                outcomes = [True] * correct + [False] * (samples - correct)
                choices = [any(choice) for choice in itertools.combinations(outcomes, k)]
                assert pass_at_k(samples, correct, k) == pytest.approx(sum(choices) / len(choices))


def test_greedy_alone() -> None:
    deliveries = {-1: delivery(-1, 3), -2: delivery(-2, 6, FinishReason.length)}
    result = scored({-1: RIGHT, -2: WRONG}, samples=0, deliveries=deliveries)
    assert (result.version, result.accuracy, result.k, result.unjudged) == (VERSION, 0.5, 0, 0)
    assert math.isnan(result.mean_at_k)
    assert math.isnan(result.pass_at_k)
    assert (result.length_mean_tokens, result.truncated_fraction) == (4.5, 0.5)
    assert result.examples == (("one?", "1,1,1", True), ("two?", "2,2,2,2,2,2", False))


def test_sampled_answers_count_per_prompt_and_greedy_ones_apart() -> None:
    verdicts = dict(zip(range(-1, -7, -1), [WRONG, RIGHT, RIGHT, WRONG, RIGHT, WRONG], strict=True))
    result = scored(verdicts, samples=2, max_examples=1)
    assert result.accuracy == 0.0
    assert result.mean_at_k == 0.75
    assert (result.k, result.pass_at_k) == (2, 1.0)
    assert scored(verdicts, samples=2, k=1).pass_at_k == 0.75
    assert result.examples == (("one?", "1,1", False),)


def test_what_no_judge_saw_is_counted_and_left_out() -> None:
    lost = Verdict.failed("math", "gone", Outcome.timeout)
    verdicts = dict(zip(range(-1, -7, -1), [lost, RIGHT, lost, RIGHT, WRONG, WRONG], strict=True))
    result = scored(verdicts, samples=2)
    assert result.unjudged == 2
    assert result.accuracy == 1.0
    assert result.mean_at_k == 0.5
    assert result.pass_at_k == 0.0
    assert result.examples[0] == ("one?", "1,1", False)
    nothing = scored(dict.fromkeys((-1, -2), lost), samples=0)
    assert math.isnan(nothing.accuracy)
    assert nothing.length_mean_tokens == 2.0


def test_lengths_count_sampled_tokens_over_all_segments() -> None:
    one = delivery(-1, 3)
    tool = Segment(np.zeros(5, np.int32), np.zeros(5, bool), np.zeros(5, np.float32), VERSION, 0.0, VERSION)
    both = Delivery(-1, 0, (*one.segments, tool), FinishReason.stop)
    result = scored({-1: RIGHT, -2: RIGHT}, samples=0, deliveries={-1: both, -2: delivery(-2, 1)})
    assert result.length_mean_tokens == 2.0


@pytest.mark.parametrize(("deliveries", "says"), [
    ({-1: delivery(-1, 2)}, r"lacks answers or verdicts \[-2\]"),
    ({-1: delivery(-1, 2), -2: delivery(-2, 2, None)}, "answer -2 was cut"),
    ({-1: delivery(-1, 2), -2: delivery(-2, 2, version=PolicyVersion(0, 5))}, r"of 0\.5, expected 0\.4"),
])
def test_a_score_needs_whole_answers_of_one_version(deliveries: dict[int, Delivery], says: str) -> None:
    with pytest.raises(RecordError, match=says):
        scored({-1: RIGHT, -2: RIGHT}, samples=0, deliveries=deliveries)


def test_a_score_needs_every_verdict() -> None:
    with pytest.raises(RecordError, match="lacks"):
        scored({-1: RIGHT}, samples=0, deliveries={-1: delivery(-1, 2), -2: delivery(-2, 2)})

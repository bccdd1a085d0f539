from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.generate.partial import OpenTrajectory
from engine.records.trajectory import FinishReason
from engine.records.version import PolicyVersion
from tests.small_models import ask, drain, random_prompt, tiny_sampler

FIRST, SECOND = PolicyVersion(0, 1), PolicyVersion(0, 2)


def held(earlier: int = 0, **fields: Any) -> OpenTrajectory:
    request = ask(4, random_prompt(0, 3), 20, generated=np.arange(earlier, dtype=np.int32), **fields)
    return OpenTrajectory.begin(request, FIRST)


def response(length: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(length, dtype=np.int64), -np.arange(length, dtype=np.float32)


def test_the_budget_counts_tokens_of_this_stay_only() -> None:
    assert held(round_budget_tokens=6).cut_length == 6
    assert held(earlier=5, round_budget_tokens=6).cut_length == 11
    assert held().cut_length > 10**12


def test_segments_close_at_the_end_of_the_response_and_empty_ones_are_not_kept() -> None:
    trajectory = held(earlier=2, temperature=0.7, attempt=3)
    trajectory.close_segment(*response(2))
    assert trajectory.closed == []
    trajectory.close_segment(*response(5))
    trajectory.swapped(SECOND, keys=4, kept=True)
    trajectory.close_segment(*response(5))
    trajectory.close_segment(*response(9))
    delivery = trajectory.delivery(FinishReason.repetition, saved_tokens=11)
    assert (delivery.trajectory_id, delivery.attempt, delivery.saved_tokens) == (4, 3, 11)
    assert [s.token_ids.tolist() for s in delivery.segments] == [[2, 3, 4], [5, 6, 7, 8]]
    assert [s.behaviour_logprob.tolist() for s in delivery.segments] == [[-2, -3, -4], [-5, -6, -7, -8]]
    assert [s.version for s in delivery.segments] == [FIRST, SECOND]
    assert [s.oldest_key_version for s in delivery.segments] == [FIRST, FIRST]
    assert all(s.sampled.all() and s.temperature == 0.7 for s in delivery.segments)
    assert delivery.segments[0].token_ids.dtype == np.int32


def test_closed_segments_keep_their_tokens_when_the_slot_is_used_again() -> None:
    trajectory = held()
    tokens, logprobs = response(3)
    trajectory.close_segment(tokens, logprobs)
    tokens[:], logprobs[:] = 77, 77
    assert trajectory.closed[0].token_ids.tolist() == [0, 1, 2]
    assert trajectory.closed[0].behaviour_logprob.tolist() == [0, -1, -2]


@pytest.mark.parametrize(
    ("keys", "kept", "oldest"),
    [(4, True, FIRST), (4, False, SECOND), (0, True, SECOND), (0, False, SECOND)],
)
def test_the_oldest_key_is_older_only_where_keys_were_kept(
    keys: int, kept: bool, oldest: PolicyVersion
) -> None:
    trajectory = held()
    trajectory.swapped(SECOND, keys=keys, kept=kept)
    assert (trajectory.version, trajectory.oldest_key_version) == (SECOND, oldest)


def test_every_prefilled_key_has_one_cause() -> None:
    assert held().prefill_causes(0, 5) == {"swap": 0, "prompt": 5}
    trajectory = held(earlier=2)
    assert trajectory.prefill_causes(0, 5) == {"swap": 0, "resume": 5}
    trajectory.swapped(SECOND, keys=4, kept=False)
    assert trajectory.prefill_causes(0, 3) == {"swap": 3, "resume": 0}
    assert trajectory.prefill_causes(3, 3) == {"swap": 1, "resume": 2}
    trajectory.swapped(PolicyVersion(0, 3), keys=2, kept=False)
    assert trajectory.prefill_causes(0, 6) == {"swap": 4, "resume": 2}


def test_a_spent_budget_cuts_and_the_next_round_goes_on(network: Any) -> None:
    sampler = tiny_sampler(network)
    prompt = random_prompt(0, 4)
    sampler.submit([ask(0, prompt, 13, round_budget_tokens=5)])
    earlier = np.zeros(0, np.int32)
    lengths, reasons = [], []
    for _ in range(3):
        (delivery,) = drain(sampler)
        lengths.append(delivery.segments[0].num_sampled)
        reasons.append(delivery.finish_reason)
        earlier = np.concatenate([earlier, delivery.segments[0].token_ids])
        if delivery.finish_reason is None:
            sampler.submit([ask(0, prompt, 13, round_budget_tokens=5, generated=earlier)])
    assert lengths == [5, 5, 3]
    assert reasons == [None, None, FinishReason.length]
    # What was cut is prefilled, never sampled again.
    counts = sampler.metrics()
    assert (counts["sampled_tokens"], counts["prefilled_resume_tokens"]) == (13, (4 + 5 - 1) + (4 + 10 - 1))


def test_a_response_that_ends_with_its_budget_is_finished_not_cut(network: Any) -> None:
    sampler = tiny_sampler(network)
    sampler.submit([ask(0, random_prompt(0, 4), 5, round_budget_tokens=5)])
    assert [delivery.finish_reason for delivery in drain(sampler)] == [FinishReason.length]

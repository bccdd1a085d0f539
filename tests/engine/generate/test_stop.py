from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from engine.generate.stop import StopRule
from engine.records.trajectory import FinishReason
from tests.small_models import answers, ask, drain, random_prompt, tiny_sampler


@pytest.mark.parametrize(
    ("token", "length", "looping", "expected"),
    [
        (5, 1, False, None),
        (2, 1, False, FinishReason.stop),
        (2, 8, True, FinishReason.stop),
        (5, 4, True, FinishReason.repetition),
        (5, 8, True, FinishReason.repetition),
        (5, 7, False, None),
        (5, 8, False, FinishReason.length),
        (5, 9, False, FinishReason.length),
    ],
)
def test_reason(token: int, length: int, looping: bool, expected: FinishReason | None) -> None:
    assert StopRule([2, 3], 10).reason(token, length, 8, looping) is expected


def test_candidates_are_the_tokens_with_a_reason() -> None:
    rule = StopRule([2], 4)
    cases = list(product(range(4), (1, 5), (5,), (False, True)))
    tokens, lengths, limits, looping = (np.array(column) for column in zip(*cases, strict=True))
    expected = [rule.reason(*case) is not None for case in cases]
    assert rule.candidates(tokens, lengths, limits, looping).tolist() == expected


def test_end_tokens_outside_the_vocabulary_are_never_sampled() -> None:
    rule = StopRule([3, 99, -1], 4)
    assert [token for token in range(4) if rule.reason(token, 1, 9, False)] == [3]


def test_the_response_ends_with_its_stop_token(network: Any) -> None:
    free = tiny_sampler(network)
    free.submit([ask(0, random_prompt(0, 5), 30)])
    tokens, logprobs = answers(drain(free))[0]
    place = 9
    assert tokens[place] not in tokens[:place]
    sampler = tiny_sampler(network, stop_ids=[tokens[place]])
    sampler.submit([ask(0, random_prompt(0, 5), 30)])
    (delivery,) = drain(sampler)
    assert delivery.finish_reason is FinishReason.stop
    assert delivery.saved_tokens == 0
    assert answers([delivery])[0] == (tokens[: place + 1], logprobs[: place + 1])


@pytest.mark.parametrize("limit", [1, 7])
def test_the_limit_counts_tokens_of_earlier_segments(network: Any, limit: int) -> None:
    sampler = tiny_sampler(network)
    earlier = np.arange(3, 3 + limit - 1, dtype=np.int32)
    prompt = random_prompt(0, 5)
    sampler.submit([ask(0, prompt, limit), ask(1, prompt, limit, generated=earlier)])
    deliveries = {delivery.trajectory_id: delivery for delivery in drain(sampler)}
    assert [deliveries[i].finish_reason for i in (0, 1)] == [FinishReason.length] * 2
    assert [deliveries[i].segments[0].num_sampled for i in (0, 1)] == [limit, 1]

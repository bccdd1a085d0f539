from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.rollout import RepetitionConfig
from engine.generate.repetition import RepetitionWatch
from engine.records.trajectory import FinishReason
from tests.small_models import VOCABULARY, ask, drain, random_prompt, tiny_network, tiny_sampler


def watch_of(period: int = 4, repeats: int = 3, tokens: int = 1, slots: int = 1) -> RepetitionWatch:
    return RepetitionWatch(
        RepetitionConfig(max_period_tokens=period, min_repeats=repeats, min_tokens=tokens), slots
    )


def verdicts(watch: RepetitionWatch, tokens: list[int], slot: int = 0) -> list[bool]:
    return [bool(watch.observe(np.array([token]), np.array([slot]))[0]) for token in tokens]


def loops(tokens: list[int], period: int, repeats: int, least: int) -> bool:
    """Straight from the definition: the end is some block of at most ``period`` tokens, repeated."""
    for size in range(1, period + 1):
        need = max(size * repeats, least)
        tail = tokens[-need:]
        if len(tail) == need and all(tail[i] == tail[i - size] for i in range(size, need)):
            return True
    return False


@given(
    st.lists(st.integers(0, 2), max_size=40), st.integers(1, 5), st.integers(2, 4), st.integers(1, 12)
)
@settings(deadline=None)
def test_observe_agrees_with_the_definition(
    tokens: list[int], period: int, repeats: int, least: int
) -> None:
    watch = watch_of(period, repeats, least)
    watch.restart(0, np.zeros(0, np.int64))
    expected = [loops(tokens[: n + 1], period, repeats, least) for n in range(len(tokens))]
    assert verdicts(watch, tokens) == expected


@given(
    st.lists(st.integers(0, 1), max_size=30), st.lists(st.integers(0, 1), max_size=20), st.integers(1, 8)
)
@settings(deadline=None)
def test_restart_on_resume_equals_watching_all_along(
    earlier: list[int], later: list[int], period: int
) -> None:
    throughout, resumed = watch_of(period), watch_of(period)
    throughout.restart(0, np.zeros(0, np.int64))
    verdicts(throughout, earlier)
    verdicts(resumed, [1, 0, 1, 1])
    resumed.restart(0, np.asarray(earlier, np.int64))
    np.testing.assert_array_equal(resumed._matched, throughout._matched)
    np.testing.assert_array_equal(resumed._recent, throughout._recent)
    assert verdicts(resumed, later) == verdicts(throughout, later)


def test_restart_looks_at_a_long_response_once_for_each_period() -> None:
    watch = watch_of(period=32)
    watch.restart(0, np.tile(np.arange(7), 20_000))
    assert watch._matched[0, 6] == 7 * 20_000 - 7
    assert watch._matched[0, 0] == 0


def test_slots_are_watched_apart() -> None:
    watch = watch_of(period=2, repeats=3, slots=3)
    for slot in range(3):
        watch.restart(slot, np.zeros(0, np.int64))
    streams = np.array([[5, 5, 5], [5, 6, 7], [4, 4, 9]])
    seen = [watch.observe(streams[:, step], np.arange(3)).tolist() for step in range(3)]
    assert seen == [[False] * 3, [False] * 3, [True, False, False]]


@pytest.fixture(scope="module")
def looping_network() -> Any:
    """A network that says the same token for ever when asked greedily."""
    import torch

    network = tiny_network("llama", tie_word_embeddings=False)
    with torch.no_grad():
        network.lm_head.weight.zero_()
    return network


def test_a_loop_is_cut_while_it_is_decoded_and_what_it_saves_is_counted(looping_network: Any) -> None:
    rule = RepetitionConfig(max_period_tokens=4, min_repeats=4, min_tokens=10)
    sampler = tiny_sampler(looping_network, repetition=rule)
    sampler.submit([ask(0, random_prompt(0, 5), 40, temperature=0.0)])
    (delivery,) = drain(sampler)
    assert delivery.finish_reason is FinishReason.repetition
    assert delivery.segments[0].num_sampled == 10
    assert delivery.saved_tokens == 30
    assert sampler.metrics()["saved_tokens"] == 30


def test_a_loop_is_noticed_across_a_cut(looping_network: Any) -> None:
    rule = RepetitionConfig(max_period_tokens=4, min_repeats=4, min_tokens=10)
    sampler = tiny_sampler(looping_network, repetition=rule)
    sampler.submit([ask(0, random_prompt(0, 5), 40, temperature=0.0, generated=np.zeros(7, np.int32))])
    (delivery,) = drain(sampler)
    assert delivery.finish_reason is FinishReason.repetition
    assert (delivery.segments[0].num_sampled, delivery.saved_tokens) == (3, 30)


def test_a_slot_forgets_the_loop_of_its_last_holder(looping_network: Any) -> None:
    rule = RepetitionConfig(max_period_tokens=4, min_repeats=4, min_tokens=10)
    sampler = tiny_sampler(looping_network, slots=1, repetition=rule)
    sampler.submit([ask(index, random_prompt(index, 5), 40, temperature=0.0) for index in range(2)])
    assert [delivery.segments[0].num_sampled for delivery in drain(sampler)] == [10, 10]


def test_switched_off_a_loop_runs_to_its_limit(looping_network: Any) -> None:
    sampler = tiny_sampler(looping_network)
    sampler.submit([ask(0, random_prompt(0, 5), 40, temperature=0.0)])
    (delivery,) = drain(sampler)
    assert delivery.finish_reason is FinishReason.length
    assert delivery.segments[0].token_ids.max() < VOCABULARY

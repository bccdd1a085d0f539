"""The streaming sampler over the native one as its engine: what the engine does not know is done here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.config.rollout import RepetitionConfig
from engine.config.schedule import InFlight
from engine.errors import ConfigError, ModelError
from engine.generate.streaming import StreamingSampler
from engine.records.trajectory import FinishReason
from engine.records.version import PolicyVersion
from tests.engine.generate.native_engine import NativeEngine
from tests.small_models import (
    VOCABULARY,
    Staged,
    answers,
    ask,
    drain,
    random_prompt,
    staged,
    tiny_network,
    tiny_sampler,
    trajectory_of,
)

OFF = RepetitionConfig(enabled=False)


def streaming(network: Any, slots: int = 4, lead: int = 1, repetition: RepetitionConfig = OFF,
              stop_ids: tuple[int, ...] = ()) -> tuple[StreamingSampler, NativeEngine]:
    engine = NativeEngine(tiny_sampler(network, slots, stop_ids=stop_ids), lead)
    sampler = StreamingSampler(engine, slots, context_tokens=64, vocabulary=VOCABULARY, stop_ids=stop_ids,
                               repetition=repetition, seed=5)
    sampler.swap(staged(network), InFlight.finish)
    return sampler, engine


@pytest.fixture(scope="module")
def looping_network() -> Any:
    """Says the same token for ever when asked greedily."""
    import torch

    network = tiny_network("llama", tie_word_embeddings=False)
    with torch.no_grad():
        network.lm_head.weight.zero_()
    return network


def test_an_engine_that_runs_ahead_says_the_same(network: Any) -> None:
    said = []
    for lead in (1, 3, 50):
        sampler, _ = streaming(network, lead=lead)
        sampler.submit([ask(index, random_prompt(index, 5), 7 + index) for index in range(4)])
        said.append(answers(drain(sampler)))
        assert sampler.metrics()["sampled_tokens"] == sampler.metrics()["delivered_tokens"] == 7 + 8 + 9 + 10
    assert said[0] == said[1] == said[2]


def test_an_engine_steps_as_often_as_the_slot_that_said_most_has_tokens(network: Any) -> None:
    sampler, _ = streaming(network, lead=5)
    sampler.submit([ask(0, random_prompt(0, 5), 8), ask(1, random_prompt(1, 5), 3)])
    sampler.step()
    assert sampler.metrics()["decode_steps"] == 5
    drain(sampler)
    assert sampler.metrics()["decode_steps"] == 8


def test_the_engine_is_told_what_may_be_sampled_in_this_stay(network: Any) -> None:
    sampler, engine = streaming(network)
    prompt = random_prompt(0, 5)
    earlier = np.arange(3, 9, dtype=np.int32)
    sampler.submit([ask(1, prompt, 20), ask(2, prompt, 20, generated=earlier, round_budget_tokens=4),
                    ask(3, prompt, 20, generated=earlier), ask(2, prompt, 20, attempt=1)])
    drain(sampler)
    told = list(engine.asked.values())
    assert [one.limit for one in told] == [20, 4, 14, 20]
    assert told[1].tokens == prompt.tolist() + earlier.tolist()
    assert len({one.seed for one in told}) == len({one.key for one in told}) == 4
    assert all(one.seed >= 0 and one.salt == "0.0" for one in told)


@pytest.mark.parametrize("lead", [1, 7])
def test_what_the_engine_says_beyond_a_loop_is_dropped_uncounted(looping_network: Any, lead: int) -> None:
    rule = RepetitionConfig(max_period_tokens=4, min_repeats=4, min_tokens=10)
    sampler, _ = streaming(looping_network, lead=lead, repetition=rule)
    sampler.submit([ask(0, random_prompt(0, 5), 40, temperature=0.0),
                    ask(1, random_prompt(1, 5), 40, temperature=0.0, generated=np.zeros(7, np.int32))])
    by_id = {delivery.trajectory_id: delivery for delivery in drain(sampler)}
    assert [by_id[i].finish_reason for i in (0, 1)] == [FinishReason.repetition] * 2
    assert [(by_id[i].segments[0].num_sampled, by_id[i].saved_tokens) for i in (0, 1)] == [(10, 30), (3, 30)]
    assert sampler.metrics()["sampled_tokens"] == 13
    assert sampler.metrics()["saved_tokens"] == 60


def test_a_loop_on_the_very_last_token_needs_no_abort(looping_network: Any) -> None:
    rule = RepetitionConfig(max_period_tokens=4, min_repeats=4, min_tokens=10)
    sampler, _ = streaming(looping_network, repetition=rule)
    sampler.submit([ask(0, random_prompt(0, 5), 10, temperature=0.0)])
    (delivery,) = drain(sampler)
    assert (delivery.finish_reason, delivery.saved_tokens) == (FinishReason.repetition, 0)


def test_a_cut_takes_what_the_engine_had_sampled_meanwhile(network: Any) -> None:
    sampler, engine = streaming(network, slots=2)
    sampler.submit([ask(index, random_prompt(index, 5), 30) for index in range(3)])
    sampler.step()
    for _ in range(4):
        engine.native.step()
    assert sampler.tokens_in_slots <= 2
    deliveries = sampler.cut_all()
    assert [(d.trajectory_id, d.finish_reason) for d in deliveries] == [(0, None), (1, None), (2, None)]
    assert [sum(s.num_sampled for s in d.segments) for d in deliveries] == [5, 5, 0]
    assert sampler.idle
    assert sampler.tokens_in_slots == 0


def test_finish_waits_and_admits_nothing_meanwhile(networks: list[Any]) -> None:
    sampler, engine = streaming(networks[0], slots=1)
    sampler.submit([ask(0, random_prompt(0, 5), 5), ask(1, random_prompt(1, 5), 5)])
    sampler.step()
    sampler.swap(staged(networks[1], 1), InFlight.finish)
    sampler.swap(staged(networks[2], 2), InFlight.finish)
    assert sampler.swap_pending
    assert sampler.version == PolicyVersion(0, 0)
    deliveries = drain(sampler)
    versions = [trajectory_of(i, deliveries).segments[0].version.updates for i in (0, 1)]
    assert versions == [0, 2]
    assert engine.log == ["serve 0.0 finish", "serve 0.2 finish"]
    assert sampler.metrics()["swaps"] == 2
    assert sampler.metrics()["swaps_while_decoding"] == 0


@pytest.mark.parametrize("mode", [InFlight.keep_cache, InFlight.recompute_cache])
def test_in_flight_the_engines_stamp_counts_and_keys_are_as_old_as_they_are(
    networks: list[Any], mode: InFlight
) -> None:
    sampler, engine = streaming(networks[0])
    sampler.submit([ask(0, random_prompt(0, 5), 12)])
    for _ in range(3):
        sampler.step()
    engine.native.step()  # sampled under the weights of before, heard of after the swap
    sampler.swap(staged(networks[1], 1), mode)
    segments = trajectory_of(0, drain(sampler)).segments
    oldest = 0 if mode is InFlight.keep_cache else 1
    assert [(s.version.updates, s.oldest_key_version.updates, s.num_sampled) for s in segments] == [
        (0, 0, 4), (1, oldest, 8)
    ]
    assert sampler.metrics()["swaps_while_decoding"] == 1


def test_weights_of_another_model_change_nothing(networks: list[Any]) -> None:
    sampler, _ = streaming(networks[0])
    norm = "model.norm.weight"
    other = Staged(PolicyVersion(0, 1), "other", {norm: staged(networks[0]).tensors[norm]})
    with pytest.raises(ModelError, match="lack"):
        sampler.swap(other, InFlight.keep_cache)
    assert (sampler.version, sampler.digest) == (PolicyVersion(0, 0), "digest-0")


def test_asleep_it_has_no_weights(networks: list[Any]) -> None:
    sampler, engine = streaming(networks[0])
    sampler.wake()
    sampler.submit([ask(0, random_prompt(0, 5), 2)])
    with pytest.raises(AssertionError, match="holds no work"):
        sampler.sleep()
    drain(sampler)
    sampler.sleep()
    sampler.sleep()
    assert sampler.digest == ""
    with pytest.raises(AssertionError, match="sleeping"):
        sampler.step()
    sampler.wake()
    sampler.submit([ask(1, random_prompt(0, 5), 2)])
    assert sampler.step() == []
    sampler.swap(staged(networks[0], 3), InFlight.finish)
    assert [d.segments[0].version.updates for d in drain(sampler)] == [3]
    assert engine.log == ["serve 0.0 finish", "sleep", "wake", "serve 0.3 finish"]
    sampler.close()
    assert engine.log[-1] == "close"


def test_what_does_not_fit_is_refused(network: Any) -> None:
    sampler, _ = streaming(network)
    with pytest.raises(ConfigError, match=r"generator\.context_tokens.*trajectory 7 may need 70"):
        sampler.submit([ask(1, random_prompt(0, 5), 2), ask(7, random_prompt(0, 30), 40)])
    assert sampler.idle


def test_counters_survive_a_restart(network: Any) -> None:
    sampler, _ = streaming(network)
    sampler.submit([ask(0, random_prompt(0, 5), 6)])
    drain(sampler)
    assert sampler.metrics()["prefilled_prompt_tokens"] == 5
    successor, _ = streaming(network)
    successor.load_state_dict(sampler.state_dict())
    assert successor.metrics() == sampler.metrics()

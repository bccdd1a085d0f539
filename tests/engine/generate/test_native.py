from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from engine.config.rollout import RepetitionConfig
from engine.config.schedule import InFlight
from engine.errors import ConfigError, ModelError
from engine.generate.native import NativeSampler
from engine.models.decoder import Decoder
from engine.records.trajectory import FinishReason, Segment
from engine.records.version import PolicyVersion
from engine.records.work import Delivery, Request
from tests.small_models import (
    answers,
    ask,
    drain,
    random_prompt,
    staged,
    teacher_forced,
    tiny_network,
    tiny_sampler,
    trajectory_of,
)

REQUESTS, SLOTS, BUDGET = 200, 16, 128
SWAP_STEPS = (150, 420)


class Traffic:
    """200 requests through two samplers: one starts them and cuts, the other goes on with what was cut."""

    def __init__(self, networks: list[Any], mode: InFlight) -> None:
        self.networks, self.mode = networks, mode
        rng = np.random.default_rng(3)
        lengths = np.exp(rng.uniform(np.log(4), np.log(513), REQUESTS)).astype(int)
        self.requests = {
            index: ask(index, random_prompt(index, int(rng.integers(2, 24))), int(length),
                       round_budget_tokens=BUDGET, temperature=0.8)
            for index, length in enumerate(lengths)
        }
        self.samplers = [tiny_sampler(networks[0], SLOTS, context=560, prefill=256) for _ in range(2)]
        self.deliveries: list[Delivery] = []
        self.lost_keys = 0
        self.resumed: list[Request] = []

    def run(self) -> None:
        first, second = self.samplers
        waiting = list(self.requests.values())
        first.submit(waiting[:40])
        joins = waiting[40:]
        step = 0
        while joins or first.open_requests or second.open_requests:
            step += 1
            assert step < 5000
            if step in SWAP_STEPS:
                self.swap(SWAP_STEPS.index(step) + 1)
            if joins and step % 2 == 0:
                first.submit([joins.pop(0)])
            left = first.step()
            cut = [delivery for delivery in left if delivery.finish_reason is None]
            self.resumed += [self.resume(delivery) for delivery in cut]
            second.submit(self.resumed[-len(cut):] if cut else [])
            self.deliveries += left + second.step()

    def swap(self, version: int) -> None:
        for sampler in self.samplers:
            if self.mode is InFlight.recompute_cache:
                self.lost_keys += int(sampler._table.filled.sum())
            sampler.swap(staged(self.networks[version], version), self.mode)

    def resume(self, delivery: Delivery) -> Request:
        earlier = np.concatenate([segment.token_ids for segment in delivery.segments])
        request = self.requests[delivery.trajectory_id]
        return ask(request.trajectory_id, request.prompt_tokens, request.max_response_tokens,
                   generated=earlier, temperature=0.8)

    def worst_gap(self) -> float:
        """Largest gap between behaviour log-probs and a teacher-forced pass under the stamped version."""
        worst = 0.0
        whole = [trajectory_of(index, self.deliveries) for index in self.requests]
        prompts = [request.prompt_tokens for request in self.requests.values()]
        forced = [
            teacher_forced(network, prompts, [trajectory.token_ids for trajectory in whole], 0.8)
            for network in self.networks
        ]
        for index, trajectory in enumerate(whole):
            start = 0
            for segment in trajectory.segments:
                stop = start + segment.num_sampled
                right = forced[segment.version.updates][index][start:stop]
                worst = max(worst, float(np.abs(segment.behaviour_logprob - right).max()))
                start = stop
        return worst


@pytest.mark.parametrize("mode", list(InFlight))
def test_two_hundred_requests_through_joins_cuts_resumes_and_swaps(
    networks: list[Any], mode: InFlight
) -> None:
    traffic = Traffic(networks, mode)
    traffic.run()
    whole = {index: trajectory_of(index, traffic.deliveries) for index in traffic.requests}
    for index, request in traffic.requests.items():
        assert whole[index].finish_reason is FinishReason.length
        assert whole[index].length == request.max_response_tokens

    metrics = [sampler.metrics() for sampler in traffic.samplers]
    assert metrics[0]["contended_steps"] > 400
    for counts in metrics:
        assert counts["occupancy_fraction"] >= 0.9

    def total(key: str) -> float:
        return sum(counts.get(key, 0.0) for counts in metrics)

    # Prompts are all different, so nothing is shared and every prefilled token has exactly one cause.
    assert total("shared_prefill_tokens") == 0
    prompts = [len(request.prompt_tokens) - 1 for request in traffic.requests.values()]
    assert total("prefilled_prompt_tokens") == sum(prompts)
    going_on = [len(r.prompt_tokens) + len(r.generated) - 1 for r in traffic.resumed]
    assert len(going_on) > 30
    assert total("prefilled_resume_tokens") == sum(going_on)
    assert total("prefilled_swap_tokens") == traffic.lost_keys
    assert (traffic.lost_keys > 0) is (mode is InFlight.recompute_cache)
    causes = {key for counts in metrics for key in counts if key.startswith("prefilled_")}
    assert causes <= {"prefilled_prompt_tokens", "prefilled_resume_tokens", "prefilled_swap_tokens"}

    segments = [segment for trajectory in whole.values() for segment in trajectory.segments]
    assert {segment.version.updates for segment in segments} == {0, 1, 2}
    stale = [segment for segment in segments if segment.oldest_key_version != segment.version]
    assert bool(stale) is (mode is InFlight.keep_cache)
    assert all(segment.oldest_key_version < segment.version for segment in stale)
    versions = [[s.version.updates for s in trajectory.segments] for trajectory in whole.values()]
    assert all(row == sorted(row) for row in versions)
    assert any(len(set(row)) > 1 for row in versions)
    assert total("sampled_tokens") == total("delivered_tokens") == sum(t.length for t in whole.values())
    gap = traffic.worst_gap()
    assert gap > 0.1 if mode is InFlight.keep_cache else gap <= 1e-4


def test_after_a_swap_tokens_carry_the_newer_version(networks: list[Any]) -> None:
    sampler = tiny_sampler(networks[0])
    sampler.submit([ask(0, random_prompt(0, 5), 12)])
    for _ in range(4):
        sampler.step()
    sampler.swap(staged(networks[1], 1), InFlight.recompute_cache)
    assert (sampler.version, sampler.digest) == (PolicyVersion(0, 1), "digest-1")
    segments = drain(sampler)[0].segments
    assert [(s.version.updates, s.oldest_key_version.updates, s.num_sampled) for s in segments] == [
        (0, 0, 4), (1, 1, 8)
    ]
    assert sampler.metrics()["swaps_while_decoding"] == 1


def test_keep_cache_names_the_oldest_keys_until_the_trajectory_leaves(networks: list[Any]) -> None:
    sampler = tiny_sampler(networks[0])
    prompt = random_prompt(0, 5)
    sampler.submit([ask(0, prompt, 9)])
    for version in (1, 2):
        for _ in range(3):
            sampler.step()
        sampler.swap(staged(networks[version], version), InFlight.keep_cache)
    # A sibling may not copy keys that other weights made.
    sampler.submit([ask(1, prompt, 2)])
    deliveries = drain(sampler)
    segments = trajectory_of(0, deliveries).segments
    assert [(s.version.updates, s.oldest_key_version.updates) for s in segments] == [(0, 0), (1, 0), (2, 0)]
    sibling = trajectory_of(1, deliveries).segments[0]
    assert (sibling.version.updates, sibling.oldest_key_version.updates) == (2, 2)
    forced = teacher_forced(networks[2], [prompt], [sibling.token_ids])[0]
    np.testing.assert_allclose(sibling.behaviour_logprob, forced, atol=1e-4)


def cut_and_resumed(networks: list[Any], mode: InFlight | None, park: bool) -> tuple[NativeSampler, list[Segment]]:
    """Two rounds of four tokens, other weights between them; the sampler, and both segments."""
    sampler = tiny_sampler(networks[0], slots=2, park=park)
    request = ask(0, random_prompt(0, 5), 8, round_budget_tokens=4)
    sampler.submit([request])
    first = drain(sampler)[0].segments
    if mode is not None:
        sampler.swap(staged(networks[1], 1), mode)
    sampler.submit([replace(request, generated=first[0].token_ids)])
    return sampler, [*first, *drain(sampler)[0].segments]


def test_parked_keys_spare_the_prefill_of_a_resumed_trajectory(networks: list[Any]) -> None:
    sampler, parked = cut_and_resumed(networks, None, park=True)
    assert sampler.metrics()["kept_resume_tokens"] == 8
    assert "prefilled_resume_tokens" not in sampler.metrics()
    other, prefilled = cut_and_resumed(networks, None, park=False)
    assert other.metrics()["prefilled_resume_tokens"] == 8
    assert [s.token_ids.tolist() for s in parked] == [s.token_ids.tolist() for s in prefilled]
    assert [s.oldest_key_version.updates for s in parked] == [0, 0]


def test_parked_keys_of_older_weights_are_named_and_other_modes_forget_them(networks: list[Any]) -> None:
    for mode, oldest in ((InFlight.keep_cache, 0), (InFlight.finish, 1), (InFlight.recompute_cache, 1)):
        sampler, segments = cut_and_resumed(networks, mode, park=True)
        assert [s.version.updates for s in segments] == [0, 1]
        assert [s.oldest_key_version.updates for s in segments] == [0, oldest]
        assert sampler.metrics()["kept_resume_tokens"] == (8 if oldest == 0 else 0)


def test_finish_admits_nothing_until_the_slots_are_empty(networks: list[Any]) -> None:
    sampler = tiny_sampler(networks[0], slots=2)
    sampler.submit([ask(index, random_prompt(index, 4), 6) for index in range(3)])
    sampler.step()
    sampler.swap(staged(networks[1], 1), InFlight.finish)
    assert sampler.swap_pending
    assert sampler.version == PolicyVersion(0, 0)
    left = [delivery for _ in range(5) for delivery in sampler.step()]
    assert sorted(d.trajectory_id for d in left) == [0, 1]
    assert not sampler.swap_pending
    assert sampler.version == PolicyVersion(0, 1)
    left += drain(sampler)
    assert [trajectory_of(index, left).segments[0].version.updates for index in range(3)] == [0, 0, 1]
    assert sampler.metrics()["prefilled_prompt_tokens"] == 9


@pytest.mark.parametrize("mode", list(InFlight))
def test_the_newest_staging_wins_over_a_pending_one(networks: list[Any], mode: InFlight) -> None:
    sampler = tiny_sampler(networks[0])
    sampler.submit([ask(0, random_prompt(0, 4), 6)])
    sampler.step()
    sampler.swap(staged(networks[1], 1), InFlight.finish)
    sampler.swap(staged(networks[2], 2), mode)
    drain(sampler)
    assert sampler.version == PolicyVersion(0, 2)
    assert sampler.metrics()["swaps"] == 2


def test_cut_all_hands_back_open_and_waiting_requests_and_lets_a_pending_swap_in(
    networks: list[Any],
) -> None:
    sampler = tiny_sampler(networks[0], slots=2)
    sampler.submit([ask(index, random_prompt(index, 4), 20, attempt=index) for index in range(5)])
    for _ in range(3):
        sampler.step()
    assert (sampler.tokens_in_slots, sampler.open_requests) == (6, 5)
    sampler.swap(staged(networks[1], 1), InFlight.finish)
    deliveries = sampler.cut_all()
    assert [(d.trajectory_id, d.attempt, d.finish_reason) for d in deliveries] == [
        (index, index, None) for index in range(5)
    ]
    assert [sum(s.num_sampled for s in d.segments) for d in deliveries] == [3, 3, 0, 0, 0]
    assert (sampler.tokens_in_slots, sampler.open_requests, sampler.idle) == (0, 0, True)
    assert sampler.version == PolicyVersion(0, 1)


def test_a_swap_before_any_key_leaves_no_old_stamp_and_no_other_cause(networks: list[Any]) -> None:
    sampler = tiny_sampler(networks[0], slots=2, prefill=8)
    sampler.submit([ask(0, random_prompt(0, 9), 6), ask(1, random_prompt(1, 9), 6)])
    sampler.step()
    sampler.swap(staged(networks[1], 1), InFlight.keep_cache)
    deliveries = drain(sampler)
    assert trajectory_of(1, deliveries).segments[0].oldest_key_version == PolicyVersion(0, 1)
    counts = sampler.metrics()
    assert counts["prefilled_prompt_tokens"] == 16
    assert counts.get("prefilled_swap_tokens", 0) == 0


def test_nothing_is_sampled_before_weights_arrived(network: Any) -> None:
    decoder = Decoder(network.config, torch.float32, 32)
    bare = NativeSampler(decoder, 2, 8, context_tokens=32, stop_ids=[],
                         repetition=RepetitionConfig(enabled=False), seed=0)
    bare.submit([ask(0, random_prompt(0, 4), 3)])
    assert bare.step() == []
    assert bare.metrics().get("sampled_tokens", 0) == 0
    bare.swap(staged(network), InFlight.finish)
    assert len(drain(bare)) == 1


def test_a_request_that_fits_no_slot_is_refused_with_all_of_its_call(network: Any) -> None:
    sampler = tiny_sampler(network, context=32)
    with pytest.raises(ConfigError, match=r"generator\.context_tokens=32: trajectory 1 may need 33"):
        sampler.submit([ask(0, random_prompt(0, 4), 4), ask(1, random_prompt(1, 13), 20)])
    assert sampler.idle


def test_weights_of_another_model_are_refused(network: Any) -> None:
    with pytest.raises(ModelError, match="do not fit"):
        tiny_sampler(network).swap(staged(tiny_network(hidden_size=48), 1), InFlight.finish)


def test_a_slot_is_filled_to_its_last_position(network: Any) -> None:
    sampler = tiny_sampler(network, context=20)
    sampler.submit([ask(0, random_prompt(0, 4), 16)])
    deliveries = drain(sampler)
    tokens, logprobs = answers(deliveries)[0]
    forced = teacher_forced(network, [random_prompt(0, 4)], [np.asarray(tokens)])[0]
    np.testing.assert_allclose(logprobs, forced, atol=1e-4)


def test_small_prefill_passes_wait_for_company_but_not_for_ever(network: Any) -> None:
    sampler = tiny_sampler(network, slots=16, context=128, prefill=64)
    sampler.submit([ask(index, random_prompt(index, 5), 60) for index in range(15)])
    for _ in range(2):
        sampler.step()
    before = sampler.metrics()["prefill_passes"]
    sampler.submit([ask(99, random_prompt(99, 5), 20)])
    steps = 0
    while sampler.metrics()["prefill_passes"] == before:
        sampler.step()
        steps += 1
    assert 1 < steps <= 8
    sampler.submit([ask(index, random_prompt(index, 5), 4) for index in range(100, 103)])
    assert len(drain(sampler)) == 19


def test_who_was_admitted_first_is_prefilled_first_whatever_the_slot(network: Any) -> None:
    sampler = tiny_sampler(network, slots=3, prefill=8)
    sampler.submit([ask(0, random_prompt(0, 3), 1), ask(1, random_prompt(1, 3), 30)])
    sampler.submit([ask(index, random_prompt(index, 40), 5) for index in (2, 3)])
    assert [delivery.trajectory_id for delivery in drain(sampler)] == [0, 2, 3, 1]


def test_counters_survive_a_restart(network: Any) -> None:
    sampler = tiny_sampler(network)
    sampler.submit([ask(0, random_prompt(0, 4), 6)])
    drain(sampler)
    heir = tiny_sampler(network)
    heir.load_state_dict(sampler.state_dict())
    assert heir.metrics() == sampler.metrics()
    assert heir.metrics()["sampled_tokens"] == 6
    sampler.close()
    assert sampler.idle


def test_who_slept_goes_on_as_if_nothing_had_been() -> None:
    network = tiny_network()
    requests = [ask(index, random_prompt(index, 6)) for index in range(3)]
    awake, sleeper = tiny_sampler(network), tiny_sampler(network)
    for sampler in (awake, sleeper):
        sampler.submit(requests)
    expected, first = drain(awake), drain(sleeper)
    sleeper.sleep()
    assert (sleeper.version.updates, sleeper.digest) == (-1, ""), "it serves nothing"
    sleeper.wake()
    sleeper.submit(requests)
    assert sleeper.step() == []
    sleeper.swap(staged(network), InFlight.finish)
    for found in (first, drain(sleeper)):
        for one, other in zip(expected, found, strict=True):
            assert [s.token_ids.tolist() for s in one.segments] == [s.token_ids.tolist() for s in other.segments]
            assert [s.behaviour_logprob.tolist() for s in one.segments] == [
                s.behaviour_logprob.tolist() for s in other.segments]


def test_nobody_falls_asleep_over_work() -> None:
    sampler = tiny_sampler(tiny_network())
    sampler.submit([ask(0, random_prompt(0, 6))])
    with pytest.raises(AssertionError, match="holds no work"):
        sampler.sleep()

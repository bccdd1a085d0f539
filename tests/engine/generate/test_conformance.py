"""What every sampler must do, asked of each kind alike; what only some can do asks for their abilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch

from engine.config.rollout import RepetitionConfig
from engine.config.schedule import InFlight
from engine.errors import ModelError
from engine.generate.sampler import Sampler
from engine.records.trajectory import FinishReason
from engine.records.version import PolicyVersion
from engine.records.work import Delivery, Request
from tests.engine.generate.conftest import SLOTS, STOPS
from tests.small_models import (
    Staged,
    answers,
    ask,
    drain,
    random_prompt,
    staged,
    teacher_forced,
    trajectory_of,
)

Make = Callable[..., Sampler]


def requests(count: int, limit: int = 24, first: int = 0, length: int = 6, **fields: Any) -> list[Request]:
    return [ask(first + i, random_prompt(first + i, length + i), limit, **fields) for i in range(count)]


def gap(network: Any, asked: Iterable[Request], deliveries: list[Delivery]) -> float:
    """Largest difference between behaviour log-probs and a teacher-forced pass of the learner's network."""
    worst = 0.0
    for request in asked:
        whole = trajectory_of(request.trajectory_id, deliveries)
        (right,) = teacher_forced(network, [request.prompt_tokens], [whole.token_ids], request.temperature or 1.0)
        said = np.concatenate([segment.behaviour_logprob for segment in whole.segments])
        worst = max(worst, float(np.abs(said - right).max()))
    return worst


def test_more_requests_than_slots_end_where_they_must_with_true_logprobs(
    make_sampler: Make, wide_networks: list[Any]
) -> None:
    sampler = make_sampler()
    asked = [*requests(5, temperature=0.7), *requests(4, 30, first=50, temperature=1.3)]
    sampler.submit(asked)
    assert sampler.open_requests == 9
    deliveries = drain(sampler)
    for request in asked:
        whole = trajectory_of(request.trajectory_id, deliveries)
        ends = np.isin(whole.token_ids, STOPS)
        if whole.finish_reason is FinishReason.stop:
            assert ends[-1]
            assert not ends[:-1].any()
        else:
            assert whole.finish_reason is FinishReason.length
            assert not ends.any()
            assert whole.length == request.max_response_tokens
        assert {s.temperature for s in whole.segments} == {request.temperature}
        assert {(s.version, s.oldest_key_version) for s in whole.segments} == {(sampler.version, sampler.version)}
    assert gap(wide_networks[0], asked, deliveries) <= 1e-4
    counts = sampler.metrics()
    assert counts["sampled_tokens"] == sum(len(tokens) for tokens, _ in answers(deliveries).values())
    assert sampler.idle
    assert (sampler.tokens_in_slots, sampler.open_requests) == (0, 0)


def test_samples_of_one_prompt_differ_and_greedy_ones_do_not(make_sampler: Make, wide_networks: list[Any]) -> None:
    sampler = make_sampler()
    prompt = random_prompt(3, 9)
    sampled = [ask(i, prompt, 20) for i in range(4)]
    greedy = [ask(10 + i, prompt, 20, temperature=0.0) for i in range(2)]
    sampler.submit([*sampled, *greedy])
    deliveries = drain(sampler)
    said = answers(deliveries)
    assert len({tuple(said[i][0]) for i in range(4)}) == 4
    assert said[10][0] == said[11][0]
    # A greedy token's log-probability is that under temperature 1.
    assert gap(wide_networks[0], [*sampled, *greedy], deliveries) <= 1e-4


def test_a_round_budget_cuts_and_the_cut_goes_on(make_sampler: Make, wide_networks: list[Any]) -> None:
    sampler = make_sampler()
    asked = requests(6, 40, temperature=0.8, round_budget_tokens=7)
    sampler.submit(asked)
    deliveries = drain(sampler)
    cut = [delivery for delivery in deliveries if delivery.finish_reason is None]
    assert cut
    assert {sum(s.num_sampled for s in delivery.segments) for delivery in cut} == {7}
    by_id = {request.trajectory_id: request for request in asked}
    sampler.submit([
        ask(one.trajectory_id, by_id[one.trajectory_id].prompt_tokens, 40, temperature=0.8,
            generated=np.concatenate([s.token_ids for s in one.segments]))
        for one in cut
    ])
    deliveries += drain(sampler)
    assert all(trajectory_of(i, deliveries).finish_reason is not None for i in by_id)
    assert max(trajectory_of(i, deliveries).length for i in by_id) <= 40
    assert gap(wide_networks[0], asked, deliveries) <= 1e-4


def test_a_cut_hands_everything_back(make_sampler: Make, wide_networks: list[Any]) -> None:
    sampler = make_sampler()
    asked = requests(SLOTS + 2, 200, temperature=0.9)
    sampler.submit(asked)
    deliveries = sampler.step() + sampler.step()
    deliveries += sampler.cut_all()
    assert {d.trajectory_id for d in deliveries} == {r.trajectory_id for r in asked}
    assert sampler.idle
    assert sampler.tokens_in_slots == 0
    begun = [r for r in asked if trajectory_of(r.trajectory_id, deliveries).length]
    assert len(begun) >= SLOTS
    assert gap(wide_networks[0], begun, deliveries) <= 1e-4
    assert sampler.cut_all() == []


@pytest.mark.parametrize("mode", list(InFlight))
def test_weights_change_between_two_tokens(make_sampler: Make, wide_networks: list[Any], mode: InFlight) -> None:
    sampler = make_sampler()
    asked = [ask(i, random_prompt(i, 6 + i), 200) for i in range(SLOTS + 2)]
    sampler.submit(asked)
    deliveries = [delivery for _ in range(3) for delivery in sampler.step()]
    sampler.swap(staged(wide_networks[1], 1), mode)
    assert sampler.swap_pending is (mode is InFlight.finish)
    deliveries += drain(sampler)
    assert sampler.version == PolicyVersion(0, 1)
    segments = [s for r in asked for s in trajectory_of(r.trajectory_id, deliveries).segments]
    assert {s.version.updates for s in segments} == {0, 1}
    both = [r for r in asked if len({s.version for s in trajectory_of(r.trajectory_id, deliveries).segments}) == 2]
    assert bool(both) is (mode is not InFlight.finish)
    old = {s.oldest_key_version.updates for s in segments if s.version.updates == 1}
    assert (0 in old) is (mode is InFlight.keep_cache)
    assert 1 in old
    for request in asked:
        whole = trajectory_of(request.trajectory_id, deliveries)
        start = 0
        for segment in whole.segments:
            stop = start + segment.num_sampled
            (right,) = teacher_forced(wide_networks[segment.version.updates], [request.prompt_tokens],
                                      [whole.token_ids])
            if segment.oldest_key_version == segment.version:
                np.testing.assert_allclose(segment.behaviour_logprob, right[start:stop], atol=1e-4)
            start = stop


def test_a_later_request_never_looks_at_keys_of_other_weights(make_sampler: Make, wide_networks: list[Any]) -> None:
    sampler = make_sampler()
    prompt = random_prompt(9, 150)
    for mode in InFlight:
        for updates in (0, 1):
            asked = [ask(100 + i, prompt, 8) for i in range(2)]
            sampler.submit(asked)
            # Somebody goes on over the old keys meanwhile.
            sampler.submit([ask(200, prompt, 100)])
            sampler.step()
            deliveries = sampler.cut_all() if mode is not InFlight.keep_cache else []
            number = 2 * list(InFlight).index(mode) + updates + 1
            fresh = Staged(PolicyVersion(0, number), "", staged(wide_networks[number % 2]).tensors)
            sampler.swap(fresh, mode)
            later = [ask(300 + i, prompt, 8) for i in range(2)]
            sampler.submit(later)
            deliveries = drain(sampler)
            assert gap(wide_networks[number % 2], later, deliveries) <= 1e-4
            for request in later:
                (segment,) = trajectory_of(request.trajectory_id, deliveries).segments
                assert segment.oldest_key_version == segment.version == PolicyVersion(0, number)


def test_a_loop_is_cut_while_it_is_decoded(make_sampler: Make, wide_networks: list[Any]) -> None:
    sampler = make_sampler(RepetitionConfig(max_period_tokens=4, min_repeats=4, min_tokens=10))
    # Every logit is 0, so the greedy answer is token 0 for ever.
    silent = {name: torch.zeros_like(t) if "embed" in name or "lm_head" in name else t
              for name, t in staged(wide_networks[0]).tensors.items()}
    sampler.swap(Staged(PolicyVersion(0, 1), "", silent), InFlight.finish)
    sampler.submit([ask(0, random_prompt(0, 5), 100, temperature=0.0),
                    ask(1, random_prompt(1, 5), 100, temperature=0.0, generated=np.zeros(7, np.int32))])
    by_id = {delivery.trajectory_id: delivery for delivery in drain(sampler)}
    assert [by_id[i].finish_reason for i in (0, 1)] == [FinishReason.repetition] * 2
    assert [sum(s.num_sampled for s in by_id[i].segments) for i in (0, 1)] == [10, 3]
    assert [by_id[i].saved_tokens for i in (0, 1)] == [90, 90]
    assert sampler.metrics()["sampled_tokens"] == 13


def test_weights_of_another_model_are_refused_by_name_and_the_old_ones_serve(
    make_sampler: Make, wide_networks: list[Any]
) -> None:
    sampler = make_sampler()
    name = "model.layers.0.self_attn.q_proj.weight"
    for broken in ({name: torch.zeros(3, 5)}, {}):
        tensors = {key: value for key, value in staged(wide_networks[1]).tensors.items() if key != name} | broken
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            sampler.swap(Staged(PolicyVersion(0, 1), "", tensors), InFlight.keep_cache)
    assert sampler.version == PolicyVersion(0, 0)


def test_equal_work_gives_equal_bits_where_that_is_promised(make_sampler: Make) -> None:
    sampler = make_sampler()
    if not sampler.abilities.equal_bits:
        pytest.skip("this sampler does not promise to repeat bits")
    said = []
    for _ in range(2):
        sampler.submit(requests(6))
        said.append(answers(drain(sampler)))
    assert said[0] == said[1]

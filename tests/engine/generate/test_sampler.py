"""What the protocol promises of any sampler, asked of the native one: nothing but the weights and its own
key decides what a trajectory says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from engine.config.schedule import InFlight
from engine.generate.sampler import Sampler
from engine.ops.sample import random_key
from engine.ops.sample import sample as sample_op
from tests.small_models import (
    VOCABULARY,
    answers,
    ask,
    drain,
    random_prompt,
    staged,
    tiny_network,
    tiny_sampler,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def one(trajectory_id: int = 7, **fields: Any) -> Any:
    return ask(trajectory_id, random_prompt(1, 9), 24, **fields)


def neighbour(index: int, length: int = 6, limit: int = 20) -> Any:
    return ask(100 + index, random_prompt(50 + index, length), limit)


def alone(network: Any, dtype: torch.dtype) -> tuple[list[int], list[float]]:
    sampler = tiny_sampler(network, 6, dtype=dtype)
    sampler.submit([one()])
    return answers(drain(sampler))[7]


def test_the_native_sampler_answers_the_whole_protocol(network: Any) -> None:
    sampler: Sampler = tiny_sampler(network)
    for name in [name for name in vars(Sampler) if not name.startswith("_")]:
        assert hasattr(sampler, name), name
    assert all(hasattr(sampler, name) for name in Sampler.__annotations__)
    assert sampler.abilities.counter_streams
    assert sampler.abilities.equal_bits


@DTYPES
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_neighbours_slot_and_order_change_no_bit(family: str, dtype: torch.dtype) -> None:
    network = tiny_network(family)
    expected = alone(network, dtype)
    assert len(expected[0]) == 24
    for before, after in ((0, 5), (5, 0), (3, 9)):
        sampler = tiny_sampler(network, 6, dtype=dtype)
        requests = [neighbour(index, 3 + index, 2 + 3 * index) for index in range(before + after)]
        sampler.submit([*requests[:before], one(), *requests[before:]])
        assert answers(drain(sampler))[7] == expected


@DTYPES
def test_with_two_threads_neighbours_change_no_bit_either(network: Any, dtype: torch.dtype) -> None:
    torch.set_num_threads(2)
    results = []
    for beside in (0, 5):
        sampler = tiny_sampler(network, 6, dtype=dtype)
        requests = [neighbour(index, 3 + index, 4) for index in range(beside)]
        sampler.submit([*requests, ask(7, random_prompt(1, 9), 4)])
        results.append(answers(drain(sampler))[7])
    assert results[0] == results[1]


@DTYPES
def test_joining_late_changes_no_bit(network: Any, dtype: torch.dtype) -> None:
    expected = alone(network, dtype)
    sampler = tiny_sampler(network, 6, dtype=dtype)
    sampler.submit([neighbour(index, limit=30) for index in range(4)])
    for _ in range(9):
        sampler.step()
    sampler.submit([one(), neighbour(9)])
    assert answers(drain(sampler))[7] == expected


@DTYPES
@pytest.mark.parametrize("prefill", [8, 32, 40])
def test_copying_a_siblings_prompt_changes_no_bit(network: Any, dtype: torch.dtype, prefill: int) -> None:
    prompt = random_prompt(1, 21)
    lone = {}
    for index in range(4):
        sampler = tiny_sampler(network, 4, dtype=dtype, prefill=prefill)
        sampler.submit([ask(index, prompt)])
        lone |= answers(drain(sampler))
        assert sampler.metrics()["shared_prefill_tokens"] == 0
    sampler = tiny_sampler(network, 4, dtype=dtype, prefill=prefill)
    sampler.submit([ask(index, prompt) for index in range(4)])
    assert answers(drain(sampler)) == lone
    assert sampler.metrics()["prefilled_prompt_tokens"] == 20
    assert sampler.metrics()["shared_prefill_tokens"] == 60
    assert len({tuple(tokens) for tokens, _ in lone.values()}) == 4


def test_attempt_trajectory_and_seed_each_choose_another_stream(network: Any) -> None:
    streams = set()
    for seed, trajectory_id, attempt in ((5, 7, 0), (6, 7, 0), (5, 8, 0), (5, 7, 1)):
        sampler = tiny_sampler(network, seed=seed)
        sampler.submit([one(trajectory_id, attempt=attempt)])
        streams.add(tuple(answers(drain(sampler))[trajectory_id][0]))
    assert len(streams) == 4


def test_temperature_zero_takes_the_likeliest_token(network: Any) -> None:
    texts = []
    for trajectory_id in (1, 2):
        sampler = tiny_sampler(network)
        sampler.submit([one(trajectory_id, temperature=0.0)])
        texts.append(answers(drain(sampler))[trajectory_id])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("cut_after", [1, 5, 23])
def test_a_cut_trajectory_goes_on_in_the_same_stream_elsewhere(network: Any, cut_after: int) -> None:
    whole, _ = alone(network, torch.float32)
    first, second = tiny_sampler(network, 6), tiny_sampler(network, 3)
    first.submit([one(round_budget_tokens=cut_after), neighbour(0)])
    cut = answers(drain(first))[7][0]
    assert cut == whole[:cut_after]
    second.submit([neighbour(1), one(generated=np.asarray(cut, np.int32))])
    assert cut + answers(drain(second))[7][0] == whole


def test_key_and_counter_of_every_draw(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def watched(hidden: Any, weight: Any, temperature: Any, key: Any, position: Any) -> Any:
        seen.append((int(key[0]), int(position[0])))
        return sample_op(hidden, weight, temperature, key, position)

    monkeypatch.setattr("engine.generate.passes.sample", watched)
    sampler = tiny_sampler(network, 1)
    sampler.submit([one(attempt=2, generated=np.arange(3, 13, dtype=np.int32))])
    drain(sampler)
    assert seen == [(random_key(5, 7, 2), position) for position in range(10, 24)]


@pytest.mark.parametrize("mode", list(InFlight))
def test_swapping_in_equal_weights_changes_no_token(network: Any, mode: InFlight) -> None:
    expected, _ = alone(network, torch.float32)
    sampler = tiny_sampler(network, 6)
    sampler.submit([one(), neighbour(0)])
    for _ in range(7):
        sampler.step()
    sampler.swap(staged(network, 1), mode)
    assert answers(drain(sampler))[7][0] == expected
    assert max(expected) < VOCABULARY

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.learn.packing import PackedRow, Sample, pack
from engine.models.packed import Block
from engine.models.policy import hidden_states


def sample(group: int, prompt: int, response: int, carried: list[int] | None = None,
           start: int = 0) -> Sample:
    carries = np.zeros(response, bool)
    carries[list(range(response)) if carried is None else carried] = True
    tokens = (np.arange(prompt + response, dtype=np.int32) + start + 13 * group) % 97 + 2
    return Sample(tokens[:prompt], tokens[prompt:], carries, -np.arange(response, dtype=np.float32),
                  np.full(response, 0.5 + group, np.float32), group)


SHAPES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(1, 9), st.integers(0, 9)), max_size=12
)


def drawn(shapes: list[tuple[int, int, int, int]]) -> list[Sample]:
    """Samples side by side within their group, equal prompts within it, some without loss."""
    prompts: dict[int, int] = {}
    samples = []
    for index, (group, prompt, response, carried) in enumerate(sorted(shapes)):
        prompts.setdefault(group, prompt)
        keep = list(range(min(carried, response)))
        shared = sample(group, prompts[group], 1).prompt_tokens
        one = sample(group, prompts[group], response, keep, start=7 * index)
        samples.append(replace(one, prompt_tokens=shared))
    return samples


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(4, 40), st.booleans())
def test_every_useful_trajectory_stands_whole_in_one_row(shapes: Any, budget: int, share: bool) -> None:
    samples = drawn(shapes)
    rows = pack(samples, budget, share)
    placed = [id(one) for row in rows for one in row.samples]
    assert sorted(placed) == sorted(id(one) for one in samples if one.carries_loss.any())
    for row in rows:
        assert len(row.tokens) <= budget or len(row.samples) == 1
        check_row(row)


def check_row(row: PackedRow) -> None:
    assert [block.start for block in row.blocks] == [0, *(block.stop for block in row.blocks[:-1])]
    assert row.blocks[-1].stop == len(row.tokens) == len(row.positions)
    assert row.source.shape == row.target.shape == row.inverse_temperature.shape == row.trajectory.shape
    assert bool((row.trajectory[1:] >= row.trajectory[:-1]).all())
    for number, one in enumerate(row.samples):
        mine = row.trajectory == number
        assert row.target[mine].tolist() == one.response[one.carries_loss].tolist()
        assert row.behaviour_logprob[mine].tolist() == one.behaviour_logprob[one.carries_loss].tolist()
        assert row.inverse_temperature[mine].tolist() == one.inverse_temperature[one.carries_loss].tolist()
        whole = np.concatenate([one.prompt_tokens, one.response])
        expected = np.flatnonzero(one.carries_loss) + len(one.prompt_tokens) - 1
        assert row.positions[row.source[mine]].tolist() == expected.tolist()
        assert row.tokens[row.source[mine]].tolist() == whole[expected].tolist()


def test_a_prompt_is_forwarded_once_for_its_group() -> None:
    samples = [sample(0, 6, 4, start=0), sample(0, 6, 4, start=0), sample(1, 6, 4)]
    (shared,) = pack(samples, 64, share_prompts=True)
    (apart,) = pack(samples, 64, share_prompts=False)
    assert len(shared.tokens) == 6 + 4 + 4 + 6 + 4
    assert len(apart.tokens) == 3 * 10
    assert [(block.prompt, block.responses) for block in shared.blocks] == [(6, (4, 4)), (10, ())]
    assert [(block.prompt, block.responses) for block in apart.blocks] == [(10, ())] * 3


def test_rows_are_filled_first_fit() -> None:
    samples = [sample(0, 2, 6), sample(1, 2, 7), sample(2, 2, 2), sample(3, 1, 1)]
    rows = pack(samples, 12)
    assert [[one.group for one in row.samples] for row in rows] == [[0, 2], [1, 3]]


def test_one_longer_than_the_budget_has_a_row_of_its_own() -> None:
    rows = pack([sample(0, 2, 2), sample(1, 4, 30), sample(2, 2, 2)], 16)
    assert [[one.group for one in row.samples] for row in rows] == [[0, 2], [1]]


def test_a_shared_block_fits_the_budget() -> None:
    rows = pack([sample(0, 4, 4, start=0) for _ in range(3)], 12)
    assert [[block.stop - block.start for block in row.blocks] for row in rows] == [[12], [8]]


def test_what_carries_no_loss_is_left_out() -> None:
    assert pack([sample(0, 2, 3, [])], 16) == []
    assert pack([], 16) == []
    (row,) = pack([sample(0, 2, 3, []), sample(0, 2, 3, [2])], 16)
    assert len(row.tokens) == 5


@pytest.mark.parametrize("share", [True, False])
def test_hidden_states_are_those_of_separate_sequences(network: Callable[..., Any], share: bool) -> None:
    samples = [sample(0, 6, 4), sample(0, 6, 5), sample(0, 6, 1), sample(1, 3, 8, [1, 5])]
    model = network()
    with torch.no_grad():
        for row in pack(samples, 20, share):
            packed = hidden_states(model, row.tokens, row.positions, row.blocks)[row.source]
            for number, one in enumerate(row.samples):
                whole = torch.from_numpy(np.concatenate([one.prompt_tokens, one.response])).long()
                block = Block(0, len(whole))
                alone = hidden_states(model, whole, torch.arange(len(whole)), [block])
                source = np.flatnonzero(one.carries_loss) + len(one.prompt_tokens) - 1
                torch.testing.assert_close(packed[row.trajectory == number], alone[source])

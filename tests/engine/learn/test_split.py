"""Who forwards what: everything once, whole, in rows that fit, and nearly equal at any time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.learn.packing import PackedRow, Sample, clusters_of, pack
from engine.learn.split import row_cost, split

SHAPES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(1, 30), st.booleans()), min_size=1, max_size=14
)


def samples_of(shapes: list[tuple[int, int, bool]], prompt: int = 5) -> list[Sample]:
    prompts = {group: np.full(prompt, 3 + group, np.int32) for group, _, _ in shapes}
    return [
        Sample(prompts[group], np.arange(length, dtype=np.int32), np.full(length, carries),
               np.zeros(length, np.float32), np.ones(length, np.float32), group)
        for group, length, carries in sorted(shapes)
    ]


def tokens(row: PackedRow) -> int:
    return len(row.tokens) if row.samples else 0


@settings(max_examples=80, deadline=None)
@given(SHAPES, st.integers(2, 5), st.integers(8, 80), st.booleans())
def test_every_trajectory_is_forwarded_by_one_rank_in_equally_many_rows(shapes: Any, ranks: int, budget: int,
                                                                        share: bool) -> None:
    samples = samples_of(shapes)
    shares = split(samples, ranks, budget, share, 32)
    assert len(shares) == ranks
    assert len({len(rows) for rows in shares}) == 1, "the ranks would wait for each other for ever"
    placed = Counter(id(one) for rows in shares for row in rows for one in row.samples)
    assert placed == Counter(id(one) for one in samples if one.carries_loss.any())
    for rows in shares:
        assert all(tokens(row) <= budget or len(row.samples) == 1 for row in rows)
    assert all(any(row.samples for row in step) for step in zip(*shares, strict=True)), "a step of blank rows"


def test_one_rank_packs_as_ever() -> None:
    samples = samples_of([(g, n, True) for g in range(3) for n in (4, 9, 2)])
    (rows,) = split(samples, 1, 24, True, 32)
    expected = pack(samples, 24, True)
    assert [row.samples for row in rows] == [row.samples for row in expected]
    assert split([], 3, 24, True, 32) == [[], [], []]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_finish_together(ranks: int) -> None:
    draw = np.random.default_rng(0)
    shapes = [(group, int(length), True) for group in range(16) for length in draw.lognormal(4.0, 0.8, 8) + 1]
    samples = samples_of(shapes, prompt=40)
    shares = split(samples, ranks, 2048, True, 576)
    steps = list(zip(*shares, strict=True))
    assert sum(max(map(tokens, step)) for step in steps) <= 1.15 * sum(tokens(r) for s in steps for r in s) / ranks
    repeated = sum(tokens(row) for rows in shares for row in rows) / sum(map(tokens, pack(samples, 2048, True)))
    assert repeated < 1.15, "prompts are repeated more than balance is worth"


def test_ranks_beyond_the_trajectories_forward_a_blank_row() -> None:
    shares = split(samples_of([(0, 4, True), (0, 6, True)]), 3, 64, True, 32)
    assert sorted(len(rows[0].samples) for rows in shares) == [0, 1, 1]
    (blank,) = (rows[0] for rows in shares if not rows[0].samples)
    assert tokens(blank) == 0
    assert len(blank.tokens) == len(blank.source) == 1
    assert torch.equal(blank.target, torch.zeros(1, dtype=torch.int64))


def test_attention_weighs_long_rows_more() -> None:
    sizes = ((960, 1), (96, 10))
    long, short = (clusters_of(samples_of([(0, n, True)] * count), 9999, False) for n, count in sizes)
    assert row_cost(long, 64) > row_cost(short, 64) > 0
    assert row_cost(long, 10**6) < 1.01 * row_cost(short, 10**6)

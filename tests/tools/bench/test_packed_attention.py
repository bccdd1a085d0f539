from __future__ import annotations

import pytest
import torch

from engine.models.packed import Block, row_spans
from tools.bench import packed_attention
from tools.bench.packed_attention import Row, dense, log_uniform_lengths, one_by_one, ours


def test_lengths_are_spread_over_their_logarithm() -> None:
    lengths = log_uniform_lengths(4000, 64, 2048, 0)
    assert min(lengths) >= 64
    assert max(lengths) < 2048
    middle = sum(length < 362 for length in lengths) / 4000
    assert middle == pytest.approx(0.5, abs=0.03)


def test_all_sides_do_the_same_work() -> None:
    torch.manual_seed(0)
    spans = row_spans([Block(0, 5, (4, 3)), Block(12, 9)])
    row = Row.draw(21)
    got = row.both_ways(ours(spans))
    for rival in (dense, one_by_one):
        for tensor, expected in zip(got, row.both_ways(rival(spans)), strict=True):
            torch.testing.assert_close(tensor, expected, atol=0.05, rtol=0.05)


def test_ratios_are_ours_over_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_attention, "peak_bytes", lambda work: work() and 100)
    found = packed_attention.measure(1, sequences=2, most_tokens=32, least_tokens=8)
    assert found["growth_of_peak_bytes_at_twice_the_tokens"] == 1.0
    for part, rival in (("packed", "dense"), ("packed", "one_by_one"), ("shared_prompts", "one_by_one")):
        mine, theirs = (found[part][f"{side}_seconds"]["median"] for side in ("ours", rival))
        assert found[part][f"ratio_seconds_vs_{rival}"] == pytest.approx(mine / theirs)
        assert found[part][f"ratio_peak_bytes_vs_{rival}"] == 1.0
    assert found["shared_prompts"]["tokens"] == 429

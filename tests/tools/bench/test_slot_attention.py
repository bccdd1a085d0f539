from __future__ import annotations

import pytest
import torch

from tools.bench import slot_attention


def test_ratio_and_errors() -> None:
    found = slot_attention.measure(1, small=True)
    ours, theirs = (found[f"slot_attention_seconds_{side}"]["median"] for side in ("perilune", "sdpa"))
    assert found["slot_attention_time_over_sdpa"] == pytest.approx(ours / theirs)
    for side in ("perilune", "sdpa"):
        assert 1e-4 < found[f"slot_attention_error_{side}"] < 2.0**-7


def test_a_result_that_is_wrong_shows_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_attention, "slot_attention", lambda query, *_: torch.zeros_like(query))
    found = slot_attention.measure(1, small=True)
    assert found["slot_attention_error_perilune"] == pytest.approx(1.0)

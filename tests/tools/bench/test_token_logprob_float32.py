from __future__ import annotations

import pytest

from tools.bench.token_logprob_float32 import measure


def test_the_head_is_in_float32_for_both_sides() -> None:
    """Eager's log-probs are off by more than 1e-4 where logits pass through bfloat16."""
    found, name = measure(1, small=True), "token_logprob_float32_forward"
    ours, theirs = (found[f"{name}_seconds_{side}"]["median"] for side in ("perilune", "eager"))
    assert found[f"{name}_time_over_eager"] == pytest.approx(ours / theirs)
    assert found[f"{name}_tokens"] == 24
    for side in ("perilune", "eager"):
        assert 0.0 < found[f"{name}_error_{side}"] < 1e-5

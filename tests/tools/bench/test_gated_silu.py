from __future__ import annotations

import pytest
import torch

from tools.bench import gated_silu


def test_ratio_and_errors() -> None:
    found = gated_silu.measure(1, small=True)
    ours, theirs = (found[f"gated_silu_seconds_{side}"]["median"] for side in ("perilune", "torch"))
    assert found["gated_silu_time_over_torch"] == pytest.approx(ours / theirs)
    for side in ("perilune", "torch"):
        assert 1e-4 < found[f"gated_silu_error_{side}"] < 2.0**-7


def test_a_result_that_is_wrong_shows_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated_silu, "gated_silu", lambda gate_up: torch.zeros_like(gate_up.chunk(2, -1)[0]))
    assert gated_silu.measure(1, small=True)["gated_silu_error_perilune"] == pytest.approx(1.0)

from __future__ import annotations

import pytest
import torch

from tools.bench import rms_norm


def test_ratio_and_errors() -> None:
    found = rms_norm.measure(1, small=True)
    ours, theirs = (found[f"rms_norm_seconds_{side}"]["median"] for side in ("perilune", "torch"))
    assert found["rms_norm_time_over_torch"] == pytest.approx(ours / theirs)
    for side in ("perilune", "torch"):
        assert 1e-4 < found[f"rms_norm_error_{side}"] < 2.0**-7


def test_the_norm_of_a_sum_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rms_norm.measure(1, small=True)
    assert found["add_rms_norm_time_over_torch"] > 0.0
    assert 1e-4 < found["add_rms_norm_error_perilune"] < 2.0**-7
    monkeypatch.setattr(rms_norm, "add_rms_norm", lambda hidden, *_: (hidden, torch.zeros_like(hidden)))
    assert rms_norm.measure(1, small=True)["add_rms_norm_error_perilune"] == pytest.approx(1.0)

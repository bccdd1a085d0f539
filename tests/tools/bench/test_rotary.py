from __future__ import annotations

from typing import Any

import pytest
import torch

from tools.bench import rotary


def test_ratio_and_errors() -> None:
    found = rotary.measure(1, small=True)
    ours, theirs = (found[f"rotary_seconds_{side}"]["median"] for side in ("perilune", "torch"))
    assert found["rotary_time_over_torch"] == pytest.approx(ours / theirs)
    for side in ("perilune", "torch"):
        for error in (f"rotary_error_{side}", f"rotary_keys_error_{side}"):
            assert 1e-4 < found[error] < 2.0**-7


def test_keys_that_are_not_written_show_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    op = rotary.rotate_and_store

    def forgets(*arguments: Any) -> torch.Tensor:
        turned = op(*arguments)
        arguments[-2].zero_()
        return turned

    monkeypatch.setattr(rotary, "rotate_and_store", forgets)
    found = rotary.measure(1, small=True)
    assert found["rotary_keys_error_perilune"] == pytest.approx(1.0)
    assert found["rotary_error_perilune"] < 2.0**-7

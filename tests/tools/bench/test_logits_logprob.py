from __future__ import annotations

import pytest

from tools.bench import logits_logprob


def test_ratios_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits_logprob.torch, "compile", lambda side: side)
    found = logits_logprob.measure(1, small=True)
    for name in ("forward", "forward_backward"):
        ours, theirs = (
            found[f"logits_logprob_{name}_seconds_{side}"]["median"] for side in ("perilune", "eager")
        )
        assert found[f"logits_logprob_{name}_time_over_eager"] == pytest.approx(ours / theirs)
    assert found["logits_logprob_error_perilune"] < 1e-5
    assert found["logits_logprob_error_eager"] < 1e-4

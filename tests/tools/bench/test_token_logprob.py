from __future__ import annotations

import pytest

from engine.ops.extension import available
from tools.bench import token_logprob
from tools.bench.extra_memory import MemoryJob
from tools.bench.head_sides import Score, eager


def test_ratios_are_ours_over_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without compiling: the sides are two, and the memory that of a table."""
    from tools.bench.head_sides import chunked, perilune

    def sides() -> dict[str, Score]:
        return {"perilune": perilune, "eager": eager, "chunked": chunked}

    def extra(job: MemoryJob) -> int:
        return {"perilune": 1, "eager": 4, "chunked": 2}[job.side]

    monkeypatch.setattr(token_logprob, "sides", sides)
    monkeypatch.setattr(token_logprob, "extra_bytes", extra)
    found = token_logprob.measure(1, small=True)
    for name in ("token_logprob_forward", "token_logprob_forward_backward"):
        ours, theirs = (found[f"{name}_seconds_{side}"]["median"] for side in ("perilune", "eager"))
        assert found[f"{name}_time_over_eager"] == pytest.approx(ours / theirs)
        assert found[f"{name}_memory_over_eager"] == 0.25
        assert (f"{name}_fraction_of_ceiling" in found) == available()
    assert found["token_logprob_forward_error_perilune"] < 1e-5
    assert found["token_logprob_forward_error_eager"] > 1e-4
    for gradient in ("d_hidden", "d_weight"):
        for side in ("perilune", "eager"):
            assert 1e-6 < found[f"token_logprob_forward_backward_{gradient}_error_{side}"] < 1e-2
    assert found["active_rows_forward_time_over_all"] > 0.0
    assert found["active_rows_forward_backward_time_over_all"] > 0.0


def test_the_sizes_are_those_of_the_claims() -> None:
    shape = token_logprob.head_shape(False)
    assert (shape.forward_tokens, shape.backward_tokens, shape.sampled_tokens) == (1024, 512, 64)
    assert (shape.width, shape.vocabulary) == (896, 151_936)
    assert token_logprob.head_shape(True).vocabulary <= 1000

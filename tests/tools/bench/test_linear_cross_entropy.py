from __future__ import annotations

import pytest
import torch

from tools.bench import linear_cross_entropy
from tools.bench.head_sides import HeadInputs, eager

HAS_IT = hasattr(torch.nn.functional, "linear_cross_entropy")


@pytest.mark.skipif(not HAS_IT, reason="this torch has no linear_cross_entropy")
def test_the_ratio_is_ours_over_torchs() -> None:
    found, name = linear_cross_entropy.measure(1, small=True), "token_logprob_without_temperature"
    sides = ("perilune", "linear_cross_entropy")
    ours, theirs = (found[f"{name}_seconds_{side}"]["median"] for side in sides)
    assert found[f"{name}_time_over_linear_cross_entropy"] == pytest.approx(ours / theirs)
    assert found[f"{name}_error_perilune"] < 1e-5 < found[f"{name}_error_linear_cross_entropy"] < 0.1


@pytest.mark.skipif(not HAS_IT, reason="this torch has no linear_cross_entropy")
def test_both_score_the_same_tokens() -> None:
    inputs = HeadInputs.draw(9, 32, 300)
    arguments = inputs.hidden, inputs.weight, inputs.target, torch.ones(9)
    logprob, entropy = linear_cross_entropy.theirs(*arguments)
    torch.testing.assert_close(logprob.float(), eager(*arguments)[0], atol=0.1, rtol=0)
    assert bool(entropy.isnan().all())


def test_an_older_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    found = linear_cross_entropy.measure(1, small=True)
    assert found == {"linear_cross_entropy": f"left out: torch {torch.__version__} has no such op"}

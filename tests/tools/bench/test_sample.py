from __future__ import annotations

import pytest

from engine.ops.extension import available
from tools.bench import sample


def test_ratio_and_error() -> None:
    found = sample.measure(1, small=True)
    ours, theirs = (found[f"sample_seconds_{side}"]["median"] for side in ("perilune", "eager"))
    assert found["sample_time_over_eager"] == pytest.approx(ours / theirs)
    assert found["sample_error_perilune"] < 1e-5
    assert ("sample_fraction_of_ceiling" in found) == available()

from __future__ import annotations

import pytest
import torch

from tools.bench.error import relative_error


def test_a_distance_is_a_share_of_the_truth() -> None:
    found, exact = torch.tensor([3.0, 5.0]).bfloat16(), torch.tensor([3.0, 4.0]).double()
    assert relative_error(found, exact) == pytest.approx(0.2)

from __future__ import annotations

import pytest
import torch

from engine.ops.arguments import describe, expect, expect_range


def test_says_argument_expectation_and_what_came() -> None:
    expect(True, "x", "anything", None)
    assert describe(torch.zeros(2, 3)) == "[2, 3] float32"
    with pytest.raises(ValueError, match=r"x: expected \[T\], got \[2, 3\] bfloat16"):
        expect(False, "x", "[T]", torch.zeros(2, 3).bfloat16())


def test_range() -> None:
    expect_range(torch.tensor([0, 4]), "x", 0, 5)
    expect_range(torch.zeros(0), "x", 0, 5)
    with pytest.raises(ValueError, match=r"x: expected values in 0\.\.4, got 0\.\.5"):
        expect_range(torch.tensor([0, 5]), "x", 0, 5)

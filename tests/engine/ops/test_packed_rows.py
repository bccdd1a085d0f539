from __future__ import annotations

import pytest
import torch

from engine.ops.packed_rows import segment_broadcast, segment_sum

SEGMENT = torch.tensor([0, 0, 2, 2, 2, 4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_each_segment(dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=dtype)
    sums = segment_sum(values, SEGMENT, 6)
    assert sums.dtype == dtype
    assert sums.tolist() == [3.0, 0.0, 12.0, 0.0, 6.0, 0.0]


def test_sum_is_that_of_token_order() -> None:
    values = torch.randn(1000) * torch.logspace(-3, 3, 1000)
    total = torch.zeros(())
    for value in values:
        total = total + value
    assert torch.equal(segment_sum(values, torch.zeros(1000, dtype=torch.int64), 1)[0], total)


def test_broadcast_and_gradients() -> None:
    values = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.equal(segment_broadcast(values, SEGMENT), values[SEGMENT])
    assert torch.autograd.gradcheck(lambda v: segment_broadcast(v, SEGMENT), (values,))
    assert torch.autograd.gradcheck(lambda v: segment_sum(v, SEGMENT, 5), (values,))


def test_empty() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert segment_sum(torch.zeros(0), nothing, 2).tolist() == [0.0, 0.0]
    assert segment_broadcast(torch.zeros(3), nothing).shape == (0,)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"segment: expected values in 0\.\.3, got 0\.\.4"):
        segment_sum(torch.zeros(6), SEGMENT, 4)
    with pytest.raises(ValueError, match="segment: expected indices that never fall"):
        segment_sum(torch.zeros(6), SEGMENT.flip(0), 6)
    with pytest.raises(ValueError, match="values: expected float32 or float64"):
        segment_sum(torch.zeros(6).bfloat16(), SEGMENT, 6)
    with pytest.raises(ValueError, match=r"segment: expected \[T\] int64"):
        segment_broadcast(torch.zeros(6), SEGMENT.int())

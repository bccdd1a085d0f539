"""Sums over the segments of a packed row, and back.

In naive torch::

    sums = torch.zeros(num_segments).index_add(0, segment, values)
    spread = per_segment[segment]

Tokens of a segment stand together, so ``segment`` never falls. Both are differentiable, each the
backward of the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.ops.arguments import expect, expect_range


def segment_sum(values: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Sum the values of each segment, in token order.

    Args:
        values: [T] float32 or float64.
        segment: [T] int64 in 0..num_segments-1, never falling.
        num_segments: S; segments without tokens sum to 0.

    Returns:
        [S] in the dtype of ``values``.

    Raises:
        ValueError: an argument has the wrong shape, dtype, order or range.
    """
    expect(values.dim() == 1, "values", "[T]", values)
    expect(values.dtype in (torch.float32, torch.float64), "values", "float32 or float64", values)
    _expect_segments(segment, num_segments)
    expect(segment.shape == values.shape, "segment", f"[{values.shape[0]}]", segment)
    if values.device.type == "cpu":
        return values.new_zeros(num_segments).index_add(0, segment, values)
    # index_add adds in any order on a GPU; segment_reduce walks each segment from its start.
    lengths = torch.bincount(segment, minlength=num_segments)
    return torch.segment_reduce(values, "sum", lengths=lengths, initial=0.0)


def segment_broadcast(values: Tensor, segment: Tensor) -> Tensor:
    """Give each token the value of its segment.

    Args:
        values: [S] floating point.
        segment: [T] int64 in 0..S-1, never falling.

    Returns:
        [T] in the dtype of ``values``.

    Raises:
        ValueError: an argument has the wrong shape, dtype, order or range.
    """
    expect(values.dim() == 1 and values.is_floating_point(), "values", "[S] floating point", values)
    _expect_segments(segment, values.shape[0])
    return values.index_select(0, segment)


def _expect_segments(segment: Tensor, num_segments: int) -> None:
    expect(segment.dim() == 1 and segment.dtype == torch.int64, "segment", "[T] int64", segment)
    expect_range(segment, "segment", 0, num_segments)
    expect(bool((segment[1:] >= segment[:-1]).all()), "segment", "indices that never fall", segment)

"""Values of a packed row, segment by segment: sum, mean, largest, and broadcast.

A partition of T tokens into S segments comes as the segment of every token, [T] int64 in 0..S-1 that never
falls, with S; or as ``cu_seqlens`` [S + 1] int32, as in :mod:`engine.ops.packed_rows`. In naive torch::

    sums = torch.zeros(S).index_add(0, segment, values)
    spread = per_segment[segment]

Sums are kept in float64 in one fixed order and rounded once: they depend neither on the place of a segment,
nor on its neighbours or the threads. Values are checked as in :mod:`engine.ops.packed_rows`: on a GPU, where a CPU
refuses, results are NaN, or -1 where they are integers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.ops.arguments import expect, expect_device, expect_range
from engine.ops.extension import register
from engine.ops.packed_rows import expect_cu_seqlens, row_layout_reference, segment_lengths

_REAL = (torch.float32, torch.float64)


def segment_sum(values: Tensor, segment: Tensor | None = None, num_segments: int | None = None, *,
                cu_seqlens: Tensor | None = None) -> Tensor:
    """Sum the values of each segment; one without tokens sums to 0. Differentiable for ``values``.

    Args:
        values: [T] float32 or float64.
        segment: [T] int64 in 0..num_segments-1, never falling.
        num_segments: S.
        cu_seqlens: [S + 1] int32, instead of ``segment`` and ``num_segments``.

    Returns:
        [S] in the dtype of ``values``.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device, order or range.
    """
    return _sum(values, _offsets(values, segment, num_segments, cu_seqlens), False)


def segment_mean(values: Tensor, segment: Tensor | None = None, num_segments: int | None = None, *,
                 cu_seqlens: Tensor | None = None) -> Tensor:
    """Mean of each segment; takes and raises what :func:`segment_sum` does, and a segment without tokens."""
    return _sum(values, _offsets(values, segment, num_segments, cu_seqlens), True)


def segment_max(values: Tensor, segment: Tensor | None = None, num_segments: int | None = None, *,
                cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Largest value of each segment, and the first token that holds it; NaN is larger than all.

    Differentiable for ``values`` through the first result; where the second is -1, no token takes a gradient. Takes
    and raises what :func:`segment_sum` does, and a segment without tokens.

    Returns:
        [S] in the dtype of ``values``; [S] int64 in 0..T-1.
    """
    op = _Max.apply if values.requires_grad else _max_op
    result: tuple[Tensor, Tensor] = op(values, _offsets(values, segment, num_segments, cu_seqlens))
    return result


def segment_broadcast(values: Tensor, segment: Tensor | None = None, *, cu_seqlens: Tensor | None = None,
                      total: int | None = None) -> Tensor:
    """Give each token the value of its segment; differentiable for float32 and float64.

    Args:
        values: [S] of any dtype of 1, 2, 4 or 8 bytes.
        segment: [T] int64 in 0..S-1, never falling.
        cu_seqlens: [S + 1] int32, instead of ``segment``.
        total: T, with ``cu_seqlens``; known without asking the device.

    Returns:
        [T] in the dtype of ``values``.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device, order or range.
    """
    expect(values.dim() == 1 and values.element_size() <= 8, "values", "[S] of at most 8 bytes each", values)
    if cu_seqlens is None:
        expect(total is None, "total", "None beside segment", total)
        expect(segment is not None, "segment", "[T] int64, or cu_seqlens in its place", segment)
        assert segment is not None
        starts = partition(values, None, segment, values.shape[0], None)
        total = segment.shape[0]
    else:
        expect(total is not None and total >= 0, "total", "the number of tokens beside cu_seqlens", total)
        starts = partition(values, None, segment, None, cu_seqlens)
        if starts.shape[0] != values.shape[0] + 1:
            expect(False, "cu_seqlens", f"[{values.shape[0] + 1}] int32", starts)
    result: Tensor = (_Broadcast.apply if values.requires_grad else _broadcast_op)(values, starts, total)
    return result


def partition(beside: Tensor, tokens: torch.Size | None, segment: Tensor | None, num_segments: int | None,
              cu_seqlens: Tensor | None) -> Tensor:
    """``cu_seqlens`` of the partition in whichever form it came; checks shape, dtype and device.

    Args:
        beside: a tensor on the device where the partition must stand.
        tokens: [T], what ``segment`` must be; None: not known.
        segment: [T] int64, with ``num_segments``; or None.
        num_segments: S.
        cu_seqlens: [S + 1] int32, where ``segment`` is None.

    Raises:
        ValueError: both or neither were given, or one does not fit.
    """
    if cu_seqlens is not None:
        other = num_segments if segment is None else segment
        expect(other is None, "cu_seqlens", "None beside segment and num_segments", cu_seqlens)
        expect_cu_seqlens(cu_seqlens, beside)
        return cu_seqlens
    expect(segment is not None, "segment", "[T] int64, or cu_seqlens in its place", segment)
    assert segment is not None
    expect(segment.dim() == 1 and segment.dtype == torch.int64, "segment", "[T] int64", segment)
    if tokens is not None and segment.shape != tokens:
        expect(False, "segment", f"{list(tokens)} int64", segment)
    expect_device(beside, segment=segment)
    expect(num_segments is not None and num_segments >= 0, "num_segments", "the number of segments", num_segments)
    starts: Tensor = _offsets_op(segment, num_segments)
    return starts


def _sum(values: Tensor, cu_seqlens: Tensor, mean: bool) -> Tensor:
    result: Tensor = (_Sum.apply if values.requires_grad else _sum_op)(values, cu_seqlens, mean)
    return result


def _offsets(values: Tensor, *given: Any) -> Tensor:
    expect(values.dim() == 1, "values", "[T]", values)
    expect(values.dtype in _REAL, "values", "float32 or float64", values)
    return partition(values, values.shape, *given)


def segment_offsets_reference(segment: Tensor, segments: int) -> Tensor:
    """Where the segments of a never falling index [T] start: cu_seqlens [S + 1] int32; reads the values."""
    expect_range(segment, "segment", 0, segments)
    falls = (segment.diff() < 0).nonzero()
    if len(falls):
        before, after = segment[int(falls[0])], segment[int(falls[0]) + 1]
        expect(False, "segment", "indices that never fall", f"{int(after)} after {int(before)}")
    return torch.searchsorted(segment, torch.arange(segments + 1, device=segment.device)).int()


def _lengths(cu_seqlens: Tensor, total: int, need_tokens: bool = False) -> list[int]:
    lengths: list[int] = segment_lengths(cu_seqlens, total).tolist()
    if need_tokens and 0 in lengths:
        expect(False, "cu_seqlens", "a token in every segment", f"none in segment {lengths.index(0)}")
    return lengths


def segment_sum_reference(values: Tensor, cu_seqlens: Tensor, mean: bool) -> Tensor:
    """The readable :func:`segment_sum` and :func:`segment_mean`."""
    parts = values.double().split(_lengths(cu_seqlens, values.shape[0], need_tokens=mean))
    sums = [part.mean() if mean else part.sum() for part in parts]
    return torch.stack(sums).to(values.dtype) if sums else values.new_zeros(0)


def segment_max_reference(values: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """The readable :func:`segment_max`."""
    parts = values.split(_lengths(cu_seqlens, values.shape[0], need_tokens=True))
    starts = cu_seqlens[:-1].long()
    if not len(starts):
        return values.new_zeros(0), starts
    most, place = zip(*(part.max(0) for part in parts), strict=True)
    return torch.stack(most), starts + torch.stack(place)


def segment_broadcast_reference(values: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    """The readable :func:`segment_broadcast`."""
    return values[row_layout_reference(cu_seqlens, total)[1]]


def _fake_offsets(segment: Tensor, segments: int) -> Tensor:
    return segment.new_empty(segments + 1, dtype=torch.int32)


def _fake_sum(values: Tensor, cu_seqlens: Tensor, mean: bool) -> Tensor:
    return values.new_empty(cu_seqlens.shape[0] - 1)


def _fake_max(values: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    most = values.new_empty(cu_seqlens.shape[0] - 1)
    return most, torch.empty_like(most, dtype=torch.int64)


def _fake_broadcast(values: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    return values.new_empty(total)


# Where no gradient is asked for the ops are called as they are: the way through autograd takes longer than they do.
class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, cu_seqlens: Tensor, mean: bool) -> Tensor:
        ctx.save_for_backward(cu_seqlens)
        ctx.tokens, ctx.mean = values.shape[0], mean
        result: Tensor = _sum_op(values, cu_seqlens, mean)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (cu_seqlens,) = ctx.saved_tensors
        gradient = gradients[0] / cu_seqlens.diff() if ctx.mean else gradients[0]
        return _Broadcast.apply(gradient, cu_seqlens, ctx.tokens), None, None


class _Max(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
        most, index = _max_op(values, cu_seqlens)
        ctx.mark_non_differentiable(index)
        ctx.save_for_backward(index)
        ctx.tokens = values.shape[0]
        return most, index

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        # -1 is no token's: it goes to one past the last, for to scatter there would end every later call on a GPU.
        place = index.where(index >= 0, ctx.tokens)
        return gradients[0].new_zeros(ctx.tokens + 1).scatter(0, place, gradients[0])[: ctx.tokens], None


class _Broadcast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
        ctx.save_for_backward(cu_seqlens)
        result: Tensor = _broadcast_op(values, cu_seqlens, total)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _Sum.apply(gradients[0], *ctx.saved_tensors, False), None, None


_offsets_op = register(
    "segment_offsets", "(Tensor segment, int segments) -> Tensor", segment_offsets_reference, _fake_offsets
)
_sum_op = register(
    "segment_sum", "(Tensor values, Tensor cu_seqlens, bool mean) -> Tensor", segment_sum_reference, _fake_sum
)
_max_op = register(
    "segment_max", "(Tensor values, Tensor cu_seqlens) -> (Tensor, Tensor)", segment_max_reference, _fake_max
)
_broadcast_op = register(
    "segment_broadcast",
    "(Tensor values, Tensor cu_seqlens, int total) -> Tensor",
    segment_broadcast_reference,
    _fake_broadcast,
)

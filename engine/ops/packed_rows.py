"""Between a packed row [T, ...] and a padded one [S, L, ...]; which token is whose.

``cu_seqlens`` [S + 1] int32 says where the sequences of a packed row start and where the last ends: 0, the
length of the first, of the first two, ..., T. In naive torch, with n the lengths::

    segment, positions = repeat_interleave(arange(S), n), cat([arange(k) for k in n])
    padded = full([S, L, ...], fill); padded[segment, positions] = packed
    packed = padded[segment, positions]

Padding and unpadding are each the backward of the other. The values of ``cu_seqlens`` are checked on a CPU. On a
GPU that would wait for the device: there, what a CPU refuses with ``ValueError`` gives NaN, or -1 where results
are integers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from engine.ops.arguments import expect, expect_device
from engine.ops.extension import register


def row_layout(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Positions and segments of the tokens of a packed row.

    Args:
        cu_seqlens: [S + 1] int32, from 0 to T, never falling.
        total: T, known without asking the device.

    Returns:
        positions [T] int64, restarting with every segment; segment [T] int64 in 0..S-1, never falling.

    Raises:
        ValueError: an argument has the wrong shape, dtype, order or range.

    Example:
        >>> row_layout(torch.tensor([0, 2, 2, 5], dtype=torch.int32), 5)
        (tensor([0, 1, 0, 1, 2]), tensor([0, 0, 2, 2, 2]))
    """
    expect_cu_seqlens(cu_seqlens)
    expect(total >= 0, "total", "at least 0", total)
    result: tuple[Tensor, Tensor] = _layout_op(cu_seqlens, total)
    return result


def pad(packed: Tensor, cu_seqlens: Tensor, length: int, fill: float = 0.0) -> Tensor:
    """One row for each segment, filled up behind it; differentiable for ``packed``.

    Args:
        packed: [T, ...] of any dtype of 1, 2, 4 or 8 bytes.
        cu_seqlens: [S + 1] int32, from 0 to T, never falling.
        length: L, at least the tokens of the longest segment.
        fill: value of the places without a token, one that the dtype of ``packed`` holds.

    Returns:
        [S, L, ...] in the dtype of ``packed``.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device, order or range.
    """
    expect(packed.dim() >= 1, "packed", "[T, ...]", packed)
    _expect_element("packed", packed)
    expect_cu_seqlens(cu_seqlens, packed)
    expect(length >= 0, "length", "at least 0", length)
    _expect_fill(fill, packed.dtype)
    result: Tensor = _pad_op(packed, cu_seqlens, length, float(fill))
    return result


def unpad(padded: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    """The tokens of a padded row, one segment after the other; differentiable for ``padded``.

    Args:
        padded: [S, L, ...] of any dtype of 1, 2, 4 or 8 bytes; segments stand at the start of their rows.
        cu_seqlens: [S + 1] int32, from 0 to T, never falling, segments of at most L tokens.
        total: T, known without asking the device.

    Returns:
        [T, ...] in the dtype of ``padded``.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device, order or range.
    """
    expect(padded.dim() >= 2, "padded", "[S, L, ...]", padded)
    _expect_element("padded", padded)
    expect_cu_seqlens(cu_seqlens, padded)
    if cu_seqlens.shape[0] != padded.shape[0] + 1:
        expect(False, "cu_seqlens", f"[{padded.shape[0] + 1}] int32", cu_seqlens)
    expect(total >= 0, "total", "at least 0", total)
    result: Tensor = _unpad_op(padded, cu_seqlens, total)
    return result


def expect_cu_seqlens(cu_seqlens: Tensor, beside: Tensor | None = None) -> None:
    """Raise ``ValueError`` unless it is [S + 1] int32, on the device of the other tensor; reads no values."""
    fits = cu_seqlens.dim() == 1 and cu_seqlens.dtype == torch.int32 and cu_seqlens.shape[0] > 0
    expect(fits, "cu_seqlens", "[S + 1] int32", cu_seqlens)
    if beside is not None:
        expect_device(beside, cu_seqlens=cu_seqlens)


def _expect_element(argument: str, tensor: Tensor) -> None:
    expect(tensor.element_size() <= 8, argument, "elements of at most 8 bytes", tensor)


def _expect_fill(fill: float, dtype: torch.dtype) -> None:
    if dtype.is_floating_point or dtype.is_complex:
        fits = not math.isfinite(fill) or abs(fill) <= torch.finfo(dtype).max
        expect(fits, "fill", f"a number that fits {dtype}", fill)
    else:
        held = None if dtype == torch.bool else torch.iinfo(dtype)  # all but 0 are True
        fits = float(fill).is_integer() and (held is None or held.min <= int(float(fill)) <= held.max)
        expect(fits, "fill", f"a whole number that fits {dtype}", fill)


def segment_lengths(cu_seqlens: Tensor, total: int) -> Tensor:
    """Tokens of each segment, [S] int64, once their sum is known to be ``total``; reads the values."""
    starts = cu_seqlens.long()
    first, last = int(starts[0]), int(starts[-1])
    expect(first == 0 and last == total, "cu_seqlens", f"values from 0 to {total}", f"{first} to {last}")
    lengths = starts.diff()
    expect(bool((lengths >= 0).all()), "cu_seqlens", "values that never fall", starts.tolist())
    return lengths


def row_layout_reference(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """The readable :func:`row_layout`."""
    lengths = segment_lengths(cu_seqlens, total)
    count = torch.arange(lengths.shape[0], device=lengths.device)
    segment = count.repeat_interleave(lengths)
    return torch.arange(total, device=lengths.device) - cu_seqlens.long()[segment], segment


def pad_reference(packed: Tensor, cu_seqlens: Tensor, length: int, fill: float) -> Tensor:
    """The readable :func:`pad`."""
    positions, segment = row_layout_reference(cu_seqlens, packed.shape[0])
    longest = int(positions.max()) + 1 if positions.numel() else 0
    expect(longest <= length, "length", f"at least {longest}, the longest segment", length)
    exact = fill if packed.is_floating_point() or packed.is_complex() else int(fill)
    padded = packed.new_full((cu_seqlens.shape[0] - 1, length, *packed.shape[1:]), exact)
    return padded.index_put((segment, positions), packed)


def unpad_reference(padded: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    """The readable :func:`unpad`."""
    positions, segment = row_layout_reference(cu_seqlens, total)
    longest, length = int(positions.max()) + 1 if total else 0, padded.shape[1]
    expect(longest <= length, "cu_seqlens", f"segments of at most {length} tokens", longest)
    return padded[segment, positions]


def _fake_layout(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    one = cu_seqlens.new_empty(total, dtype=torch.int64)
    return one, torch.empty_like(one)


def _fake_pad(packed: Tensor, cu_seqlens: Tensor, length: int, fill: float) -> Tensor:
    return packed.new_empty(cu_seqlens.shape[0] - 1, length, *packed.shape[1:])


def _fake_unpad(padded: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    return padded.new_empty(total, *padded.shape[2:])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, cu_seqlens, *_ = inputs
    ctx.save_for_backward(cu_seqlens)
    ctx.tokens = rows.shape


def _pad_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _unpad_op(gradient, ctx.saved_tensors[0], ctx.tokens[0]), None, None, None


def _unpad_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _pad_op(gradient, ctx.saved_tensors[0], ctx.tokens[1], 0.0), None, None


_layout_op = register(
    "row_layout", "(Tensor cu_seqlens, int total) -> (Tensor, Tensor)", row_layout_reference, _fake_layout
)
_pad_op = register(
    "pad", "(Tensor packed, Tensor cu_seqlens, int length, float fill) -> Tensor", pad_reference, _fake_pad
)
_unpad_op = register(
    "unpad", "(Tensor padded, Tensor cu_seqlens, int total) -> Tensor", unpad_reference, _fake_unpad
)
torch.library.register_autograd("perilune::pad", _pad_backward, setup_context=_keep)
torch.library.register_autograd("perilune::unpad", _unpad_backward, setup_context=_keep)

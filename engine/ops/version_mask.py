"""Which tokens of a packed row are young enough to carry loss.

In naive torch::

    mask = carries & (versions >= trained - max_staleness)
    counts = torch.zeros(S, dtype=torch.int64).index_add(0, segment, mask.long())
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.ops.arguments import expect, expect_device
from engine.ops.extension import register
from engine.ops.segments import partition, segment_sum_reference


def version_mask(versions: Tensor, carries: Tensor, trained: int, max_staleness: int,
                 segment: Tensor | None = None, num_segments: int | None = None, *,
                 cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which tokens are within the bound of staleness, and how many of each segment.

    Args:
        versions: [T] int64, committed updates of the policy that sampled each token; none above ``trained``
            (on a GPU a segment that holds one has a count of -1).
        carries: [T] bool, the tokens that would carry loss whatever their age.
        trained: committed updates of the version being trained.
        max_staleness: largest ``trained - version`` that keeps its loss, at least 0.
        segment: [T] int64 in 0..num_segments-1, never falling.
        num_segments: S.
        cu_seqlens: [S + 1] int32, instead of ``segment`` and ``num_segments``.

    Returns:
        mask [T] bool, counts [S] int64 of its tokens.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device, order or range.
    """
    expect(versions.dim() == 1 and versions.dtype == torch.int64, "versions", "[T] int64", versions)
    fits = carries.shape == versions.shape and carries.dtype == torch.bool
    expect(fits, "carries", f"[{versions.shape[0]}] bool", carries)
    expect_device(versions, carries=carries)
    expect(max_staleness >= 0, "max_staleness", "at least 0", max_staleness)
    starts = partition(versions, versions.shape, segment, num_segments, cu_seqlens)
    result: tuple[Tensor, Tensor] = _op(versions, carries, starts, trained, max_staleness)
    return result


def version_mask_reference(versions: Tensor, carries: Tensor, cu_seqlens: Tensor, trained: int,
                           max_staleness: int) -> tuple[Tensor, Tensor]:
    """The readable :func:`version_mask`."""
    newest = int(versions.max()) if versions.numel() else trained
    expect(newest <= trained, "versions", f"none above {trained}, the version being trained", newest)
    mask = carries & (versions >= trained - max_staleness)
    return mask, segment_sum_reference(mask.double(), cu_seqlens, False).long()


def _fake_mask(versions: Tensor, carries: Tensor, cu_seqlens: Tensor, trained: int,
               max_staleness: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(carries), versions.new_empty(cu_seqlens.shape[0] - 1)


_op = register(
    "version_mask",
    "(Tensor versions, Tensor carries, Tensor cu_seqlens, int trained, int max_staleness) -> (Tensor, Tensor)",
    version_mask_reference,
    _fake_mask,
)

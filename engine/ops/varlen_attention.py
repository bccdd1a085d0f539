"""Attention over spans by the kernels that others wrote for GPUs: flash-attn where installed, else torch's.

Both take queries and keys of unequal length and align a causal mask at the ends, so a context is put before the
keys of its span: keys that several spans see are copied for each. Sums into those keys run in any order on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from engine.ops.spans import Places

Kernel = Callable[..., Tensor]


def serves(query: Tensor) -> bool:
    """Whether these kernels take such a query [T, H, d]: on CUDA, bfloat16, heads of a multiple of 8 up to 256."""
    width = query.shape[2]
    return query.is_cuda and query.dtype == torch.bfloat16 and width % 8 == 0 and width <= 256


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, places: Places, scale: float) -> Tensor:
    """Causal attention inside each span and to its whole context; differentiable, and nothing waits for the GPU.

    Args:
        query: [T, H, d].
        key: [T, Hkv, d].
        value: [T, Hkv, d].
        places: of the row's spans, on the device of the query.
        scale: factor on the dot products.

    Returns:
        [T, H, d].
    """
    if not places.longest:
        return torch.empty_like(query)
    if places.keys is not None:
        key, value = (tensor.index_select(0, places.keys) for tensor in (key, value))
    longest = places.longest, places.longest_keys
    return _kernel()(query, key, value, places.bounds, places.key_bounds, *longest, scale)


def kernel_name() -> str:
    """Of the kernel that serves here: flash-attn's or torch's."""
    return _kernel().__name__


@cache
def _kernel() -> Kernel:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return _torch_kernel

    def flash(query: Tensor, *arguments: Any) -> Tensor:
        *rest, scale = arguments
        result: Tensor = flash_attn_varlen_func(query, *rest, softmax_scale=scale, causal=True)
        return result

    return flash


def _torch_kernel(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, key_bounds: Tensor, most: int, most_keys: int,
    scale: float,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = {}
    if (group := query.shape[1] // key.shape[1]) > 1:
        if "enable_gqa" in signature(varlen_attn).parameters:
            grouped = {"enable_gqa": True}
        else:  # torch 2.11 wants as many heads of keys as of queries
            key, value = (tensor.repeat_interleave(group, 1) for tensor in (key, value))
    result = varlen_attn(
        query, key, value, bounds, key_bounds, most, most_keys, scale=scale, window_size=(-1, 0), **grouped
    )
    assert isinstance(result, Tensor), "the log-sum-exp was not asked for"
    return result

"""Attention of single tokens over the key-value cache of the sampler.

In naive torch, for token f of slot s at position p::

    keys, values = (c[s, : p + 1].float().repeat_interleave(group, 1) for c in (key_cache, value_cache))
    probability = (torch.einsum("hd,chd->hc", query[f].float(), keys) * scale).softmax(-1)
    output[f] = torch.einsum("hc,chd->hd", probability, values)

Query heads share key-value heads in order (grouped-query attention): head h reads key-value head
h // (H / Hkv). The caches are [slots, capacity, Hkv, d]: one new token writes one contiguous run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.ops.arguments import expect, expect_device, expect_range
from engine.ops.extension import register


def slot_attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, slot: Tensor, position: Tensor, scale: float
) -> Tensor:
    """Attend from each token to the cache rows 0..position of its slot; not differentiable.

    Decoding gives one token for each slot, a prefill many positions of one; the rows a token reads, its own
    included, must have been written. The result of a token does not depend on the other tokens. float32
    accumulation.

    Args:
        query: [F, H, d] bfloat16 or float32.
        key_cache: [S, C, Hkv, d] contiguous, same dtype.
        value_cache: same shape and dtype.
        slot: [F] int64 in 0..S-1.
        position: [F] int64 below C; below 0 means no token, and gives zeros.
        scale: factor on the dot products, usually 1 / sqrt(d).

    Returns:
        [F, H, d] in the dtype of ``query``.

    Raises:
        ValueError: an argument has the wrong shape, dtype or range.
    """
    expect(query.dim() == 3, "query", "[F, H, d]", query)
    expect(query.dtype in (torch.bfloat16, torch.float32), "query", "bfloat16 or float32", query)
    tokens, heads, width = query.shape
    expect(
        key_cache.dim() == 4 and key_cache.shape[3] == width and key_cache.dtype == query.dtype,
        "key_cache",
        f"[S, C, Hkv, {width}] of {query.dtype}",
        key_cache,
    )
    shared = key_cache.shape[2]
    expect(shared > 0 and heads % shared == 0, "key_cache", f"Hkv that divides {heads} heads", key_cache)
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        expect(cache.is_contiguous(), name, "a contiguous tensor", cache.stride())
    same = value_cache.shape == key_cache.shape and value_cache.dtype == key_cache.dtype
    expect(same, "value_cache", f"{list(key_cache.shape)} of {query.dtype}", value_cache)
    expect(slot.shape == (tokens,) and slot.dtype == torch.int64, "slot", f"[{tokens}] int64", slot)
    fits = position.shape == (tokens,) and position.dtype == torch.int64
    expect(fits, "position", f"[{tokens}] int64", position)
    expect_device(query, key_cache=key_cache, value_cache=value_cache, slot=slot, position=position)
    result: Tensor = _op(query, key_cache, value_cache, slot, position, float(scale))
    return result


def slot_attention_reference(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, slot: Tensor, position: Tensor, scale: float
) -> Tensor:
    """The readable :func:`slot_attention`, token by token."""
    expect_range(slot, "slot", 0, key_cache.shape[0])
    expect_range(position.clamp(min=0), "position", 0, key_cache.shape[1])
    group = query.shape[1] // key_cache.shape[2]
    output = torch.zeros_like(query, memory_format=torch.contiguous_format)
    for token, (row, last) in enumerate(zip(slot.tolist(), position.tolist(), strict=True)):
        if last < 0:
            continue
        keys = key_cache[row, : last + 1].float().repeat_interleave(group, 1)
        values = value_cache[row, : last + 1].float().repeat_interleave(group, 1)
        scores = torch.einsum("hd,chd->hc", query[token].float(), keys) * scale
        output[token] = torch.einsum("hc,chd->hd", scores.softmax(-1), values).to(query.dtype)
    return output


def _fake(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, slot: Tensor, position: Tensor, scale: float
) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


_op = register(
    "slot_attention",
    "(Tensor query, Tensor key_cache, Tensor value_cache, Tensor slot, Tensor position, float scale)"
    " -> Tensor",
    slot_attention_reference,
    _fake,
)

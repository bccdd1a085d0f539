"""Rotary embedding (Su et al., arXiv 2104.09864), and the way of new keys and values into the cache.

In naive torch, for token f of slot s at position p, with rotate_half(x) = (-x[d/2:], x[:d/2])::

    query, key, value = fused[f].split([H, Hkv, Hkv])
    query, key = (x * cosine[p] + rotate_half(x) * sine[p] for x in (query, key))
    key_cache[s, p], value_cache[s, p] = key, value

Products and their sum are rounded to the dtype one by one, as transformers does. For inference: not
differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.ops.arguments import expect, expect_device, expect_range
from engine.ops.extension import register


def rotate_and_store(
    fused: Tensor,
    cosine: Tensor,
    sine: Tensor,
    slot: Tensor,
    position: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
) -> Tensor:
    """Turn queries and keys by their positions, and write keys and values into the caches.

    The row of a token depends on that token alone; no two tokens may name the same (slot, position). Not
    differentiable. Nothing is written where an argument is refused.

    Args:
        fused: [F, H + 2 * Hkv, d] bfloat16 or float32: query, key and value heads; d is even.
        cosine: [C or more, 1, d], same dtype.
        sine: like ``cosine``.
        slot: [F] int64 in 0..S-1.
        position: [F] int64 below C; below 0 means no token: nothing is written, its query turns as at 0.
        key_cache: [S, C, Hkv, d] contiguous, same dtype; written at (slot, position).
        value_cache: same shape and dtype; written at (slot, position).

    Returns:
        Turned queries [F, H, d] in the dtype of ``fused``, contiguous.

    Raises:
        ValueError: an argument has the wrong shape, dtype or range.
    """
    expect(fused.dim() == 3 and fused.shape[2] % 2 == 0, "fused", "[F, H + 2 * Hkv, even d]", fused)
    expect(fused.dtype in (torch.bfloat16, torch.float32), "fused", "bfloat16 or float32", fused)
    _check_caches(fused, key_cache, value_cache)
    capacity, width = key_cache.shape[1], fused.shape[2]
    fits = cosine.dim() == 3 and cosine.shape[1:] == (1, width) and cosine.shape[0] >= capacity
    fits = fits and cosine.dtype == fused.dtype
    expect(fits, "cosine", f"[{capacity} or more, 1, {width}] of {fused.dtype}", cosine)
    like = sine.shape == cosine.shape and sine.dtype == fused.dtype
    expect(like, "sine", f"{list(cosine.shape)} of {fused.dtype}", sine)
    expected = f"[{fused.shape[0]}] int64"
    for name, index in (("slot", slot), ("position", position)):
        expect(index.shape == fused.shape[:1] and index.dtype == torch.int64, name, expected, index)
    expect_device(fused, cosine=cosine, sine=sine, slot=slot, position=position, key_cache=key_cache,
                  value_cache=value_cache)
    result: Tensor = _op(fused, cosine, sine, slot, position, key_cache, value_cache)
    return result


def rotate_and_store_reference(
    fused: Tensor,
    cosine: Tensor,
    sine: Tensor,
    slot: Tensor,
    position: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
) -> Tensor:
    """The readable :func:`rotate_and_store`."""
    place = position.clamp(min=0)
    expect_range(slot, "slot", 0, key_cache.shape[0])
    expect_range(place, "position", 0, key_cache.shape[1])
    shared = key_cache.shape[2]
    turned, value = fused[:, :-shared], fused[:, -shared:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cosine[place] + torch.cat([-second, first], dim=-1) * sine[place]
    real = position >= 0
    where = (slot[real], position[real])
    key_cache[where] = turned[real, -shared:]
    value_cache[where] = value[real]
    return turned[:, :-shared].contiguous()


def _check_caches(fused: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    width, dtype = fused.shape[2], fused.dtype
    fits = key_cache.dim() == 4 and key_cache.shape[3] == width and key_cache.dtype == dtype
    fits = fits and key_cache.shape[1] > 0
    expect(fits, "key_cache", f"[S, C, Hkv, {width}] of {dtype}, C above 0", key_cache)
    shared = key_cache.shape[2]
    enough = shared > 0 and fused.shape[1] > 2 * shared
    expect(enough, "fused", f"query heads and 2 * {shared} more", fused)
    same = value_cache.shape == key_cache.shape and value_cache.dtype == dtype
    expect(same, "value_cache", f"{list(key_cache.shape)} of {dtype}", value_cache)
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        expect(cache.is_contiguous(), name, "a contiguous tensor", cache.stride())


def _fake(
    fused: Tensor,
    cosine: Tensor,
    sine: Tensor,
    slot: Tensor,
    position: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
) -> Tensor:
    tokens, heads, width = fused.shape
    return fused.new_empty(tokens, heads - 2 * key_cache.shape[2], width)


_op = register(
    "rotate_and_store",
    "(Tensor fused, Tensor cosine, Tensor sine, Tensor slot, Tensor position, Tensor(a!) key_cache,"
    " Tensor(b!) value_cache) -> Tensor",
    rotate_and_store_reference,
    _fake,
)

"""``rotate_and_store`` beside the usual rotate-half and writes into the cache: one token of each slot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.ops.rotary import rotate_and_store
from tools.bench.decoder_op import OURS, DecoderShape, compare, decoder_shape
from tools.bench.error import relative_error

_BASE = 10_000.0


def measure(repeats: int, small: bool = False) -> dict[str, Any]:
    """Ratio of time (ours over torch's) and errors against float64 of queries, and of keys in the cache; bfloat16."""
    shape = decoder_shape(small)
    generator = torch.Generator().manual_seed(7)
    heads = shape.heads + 2 * shape.shared_heads
    fused = torch.randn(shape.tokens, heads, shape.head_size, generator=generator).bfloat16()
    cosine, sine = _tables(shape)
    slot = torch.arange(shape.tokens)
    position = torch.randint(0, shape.capacity, slot.shape, generator=generator)
    cache = 2, shape.tokens, shape.capacity, shape.shared_heads, shape.head_size
    caches = {side: torch.zeros(cache).bfloat16() for side in (OURS, "torch")}

    def turn(rows: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        first, second = rows.chunk(2, -1)
        return rows * cosine[position] + torch.cat([-second, first], -1) * sine[position]

    def ours() -> Tensor:
        return rotate_and_store(fused, cosine, sine, slot, position, *caches[OURS])

    def theirs() -> Tensor:
        query, key, value = fused.split([shape.heads, shape.shared_heads, shape.shared_heads], 1)
        caches["torch"][0][slot, position] = turn(key, cosine, sine)
        caches["torch"][1][slot, position] = value
        return turn(query, cosine, sine)

    exact = turn(fused.double(), cosine.double(), sine.double())
    found = compare("rotary", {OURS: ours, "torch": theirs}, exact[:, : shape.heads], repeats)
    keys = exact[:, shape.heads : -shape.shared_heads]
    errors = {side: relative_error(rows[0][slot, position], keys) for side, rows in caches.items()}
    return found | {f"rotary_keys_error_{side}": error for side, error in errors.items()}


def _tables(shape: DecoderShape) -> tuple[Tensor, Tensor]:
    """Cosines and sines [C, 1, d] in bfloat16, as a model holds them."""
    steps = torch.arange(0, shape.head_size, 2) / shape.head_size
    angles = torch.arange(shape.capacity)[:, None] / _BASE**steps
    angles = torch.cat([angles, angles], -1)[:, None]
    return angles.cos().bfloat16(), angles.sin().bfloat16()

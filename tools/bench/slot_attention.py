"""``slot_attention`` beside SDPA over the same cache: one token of each slot, all slots full."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.ops.slot_attention import slot_attention
from tools.bench.decoder_op import compare, decoder_shape


def measure(repeats: int, small: bool = False) -> dict[str, Any]:
    """Ratio of time (ours over SDPA's) and errors against float64, in bfloat16."""
    shape = decoder_shape(small)
    generator = torch.Generator().manual_seed(7)
    query = torch.randn(shape.tokens, shape.heads, shape.head_size, generator=generator).bfloat16()
    cache = 2, shape.tokens, shape.capacity, shape.shared_heads, shape.head_size
    keys, values = torch.randn(cache, generator=generator).bfloat16()
    slot, position = torch.arange(shape.tokens), torch.full((shape.tokens,), shape.capacity - 1)
    scale = shape.head_size**-0.5

    def sdpa(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        heads = (query[:, :, None], keys.transpose(1, 2), values.transpose(1, 2))
        return scaled_dot_product_attention(*heads, scale=scale, enable_gqa=True)[:, :, 0]

    exact = sdpa(query.double(), keys.double(), values.double())
    sides = {"perilune": lambda: slot_attention(query, keys, values, slot, position, scale),
             "sdpa": lambda: sdpa(query, keys, values)}
    return compare("slot_attention", sides, exact, repeats)

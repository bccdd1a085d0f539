"""Packed rows inside a transformers network: several sequences in one row, no padding.

A row is a list of blocks. A plain block is one sequence, causal. A shared block holds one prompt and
several responses to it: every response sees the prompt and itself, so the prompt is forwarded once for
all of them; positions restart after the prompt. The gradients are those of separate sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

ATTENTION_NAME = "perilune_packed"


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens ``start .. stop`` of a row that look only at each other."""

    start: int
    stop: int
    visible: Tensor | None
    """[n, n] bool, True where the query (row) may look at the key (column); None: causal."""


def shared_block_mask(prompt_length: int, response_lengths: Sequence[int]) -> Tensor:
    """[n, n] bool mask of a prompt followed by independent responses.

    Example:
        >>> shared_block_mask(1, [1, 1]).int().tolist()
        [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    total = prompt_length + sum(response_lengths)
    owner = torch.zeros(total, dtype=torch.long)
    start = prompt_length
    for index, length in enumerate(response_lengths, start=1):
        owner[start : start + length] = index
        start += length
    same = (owner[:, None] == owner[None, :]) | (owner == 0)[None, :]
    return torch.ones(total, total, dtype=torch.bool).tril() & same


def _packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_blocks: Sequence[Block] = (),
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of [1, H, T, d] queries over the blocks of one row; returns [1, T, H, d]."""
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for block in packed_blocks:
        span = slice(block.start, block.stop)
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, span], key[:, :, span], value[:, :, span],
                attn_mask=block.visible, dropout_p=dropout, is_causal=block.visible is None,
                scale=scaling, enable_gqa=grouped,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _no_mask(*_: Any, **__: Any) -> None:
    """The blocks say what is visible, so no dense mask is built."""


def register_packed_attention() -> None:
    """Make ``attn_implementation="perilune_packed"`` known to transformers; safe to call again."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION_NAME, _packed_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)

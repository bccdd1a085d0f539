"""Packed rows inside a transformers network: several sequences in one row, no padding.

A row is a list of blocks. A block is a prompt followed by independent responses to it: every response sees
the prompt and itself, so the prompt is forwarded once for all of them; positions restart after the prompt.
A plain sequence is a prompt without responses. The gradients are those of separate sequences.

Everything but attention works on the row as it is; attention is told which span of tokens sees what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.ops.packed_attention import span_attention
from engine.ops.spans import RowSpans

ATTENTION_NAME = "perilune_packed"


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens ``start .. stop`` of a row that look only at each other."""

    start: int
    prompt: int
    """Tokens that all responses see; a plain sequence is nothing else."""
    responses: tuple[int, ...] = ()
    """Tokens of each response, one after the other behind the prompt."""

    @property
    def stop(self) -> int:
        """One past the last token."""
        return self.start + self.prompt + sum(self.responses)


def row_spans(blocks: Sequence[Block]) -> Tensor:
    """[spans, 4] int32: start, length, start and length of the context, for blocks that follow each other.

    Example:
        >>> row_spans([Block(0, 3, (2, 1)), Block(6, 4)]).tolist()
        [[0, 3, 0, 0], [3, 2, 0, 3], [5, 1, 0, 3], [6, 4, 0, 0]]
    """
    spans = []
    for block in blocks:
        cursor, context = block.start, 0
        for length in (block.prompt, *block.responses):
            spans.append((cursor, length, block.start if context else 0, context))
            cursor, context = cursor + length, block.prompt
    return torch.tensor(spans, dtype=torch.int32, device="cpu").view(-1, 4)


def _packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_spans: RowSpans | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of [1, H, T, d] queries inside the spans of the row; returns [1, T, H, d]."""
    assert row_spans is not None, "packed attention was called without the spans of its row"
    assert not dropout, "packed attention knows no dropout"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    queries, keys, values = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    return span_attention(queries, keys, values, row_spans, scale)[None], None


def register_packed_attention() -> None:
    """Make ``attn_implementation="perilune_packed"`` known to transformers; safe to call again.

    No mask goes with it, since the spans say what is visible: transformers then neither builds one nor waits for a
    GPU to say whether the positions are those of several sequences.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, _packed_attention)

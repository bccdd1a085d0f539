"""Packed rows inside a transformers network: several sequences in one row, no padding.

A row is a list of blocks. A block is a prompt followed by independent responses to it: every response sees
the prompt and itself, so the prompt is forwarded once for all of them; positions restart after the prompt.
A plain sequence is a prompt without responses. The gradients are those of separate sequences.

Everything but attention works on the row as it is. For attention, spans of like length that see equally
much are padded into one call: many small calls cost more than the padding does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

ATTENTION_NAME = "perilune_packed"

_SHORT_KEYS = 192
"""Up to here attention computes in fp32: on a CPU it is several times faster than in bf16, and longer ones slower."""


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


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """B spans of like length, each behind C tokens of context that it sees whole."""

    query: Tensor
    """[B * L] int64 tokens of the row; spans shorter than L repeat their last one."""
    key: Tensor
    """[B * (C + L)] int64 tokens of the row."""
    spans: int
    visible: Tensor | None
    """[L, C + L] bool; None: causal, no context."""


@dataclass(frozen=True, slots=True)
class RowPlan:
    """How the attention of one row is computed."""

    calls: tuple[AttentionCall, ...]
    order: Tensor
    """[T] int64: where the output of each token stands among those of all calls."""


def plan_row(blocks: Sequence[Block]) -> RowPlan:
    """The attention calls of a row whose blocks follow each other.

    Example:
        >>> plan = plan_row([Block(0, 1, (2, 1))])
        >>> [call.key.view(call.spans, -1).tolist() for call in plan.calls]
        [[[0]], [[0, 1, 2]], [[0, 3]]]
        >>> plan.order.tolist()
        [0, 1, 2, 3]
    """
    likes: defaultdict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
    for block in blocks:
        cursor, context = block.start, 0
        for length in (block.prompt, *block.responses):
            if length:
                likes[context, length.bit_length()].append((block.start, cursor, length))
            cursor, context = cursor + length, block.prompt
    order = torch.empty(blocks[-1].stop, dtype=torch.int64)
    calls, done = [], 0
    for (context, _), spans in likes.items():
        longest = max(length for _, _, length in spans)
        steps = torch.arange(longest)
        query = torch.stack([start + steps.clamp(max=length - 1) for _, start, length in spans])
        seen = torch.tensor([first for first, _, _ in spans])[:, None] + torch.arange(context)
        visible = torch.ones(longest, context + longest, dtype=torch.bool).tril(context) if context else None
        calls.append(AttentionCall(query.view(-1), torch.cat([seen, query], 1).view(-1), len(spans), visible))
        for number, (_, start, length) in enumerate(spans):
            order[start : start + length] = done + number * longest + steps[:length]
        done += len(spans) * longest
    return RowPlan(tuple(calls), order)


class _Take(torch.autograd.Function):
    """Rows of a tensor, some of them many times, in another type; gradients are summed in fp32."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(index)
        ctx.source = (source.shape, source.dtype)
        return source.index_select(0, index).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (index,), (shape, dtype) = ctx.saved_tensors, ctx.source
        gradient = gradients[0].new_zeros(shape, dtype=torch.float32)
        return gradient.index_add_(0, index, gradients[0].float()).to(dtype), None, None


def _packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_plan: RowPlan | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of [1, H, T, d] queries as the row's plan says; returns [1, T, H, d]."""
    assert row_plan is not None, "packed attention was called without the plan of its row"
    sources = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for call in row_plan.calls:
        short = len(call.key) <= _SHORT_KEYS * call.spans
        dtype = torch.float32 if short else query.dtype
        queries, keys, values = (
            _Take.apply(source, index, dtype).unflatten(0, (call.spans, -1)).transpose(1, 2)
            for source, index in zip(sources, (call.query, call.key, call.key), strict=True)
        )
        output = scaled_dot_product_attention(
            queries, keys, values, attn_mask=call.visible, dropout_p=dropout, is_causal=call.visible is None,
            scale=scaling, enable_gqa=grouped,
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1).to(query.dtype))
    return torch.cat(outputs).index_select(0, row_plan.order)[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """The plan says what is visible, so no dense mask is built."""


def register_packed_attention() -> None:
    """Make ``attn_implementation="perilune_packed"`` known to transformers; safe to call again."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION_NAME, _packed_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)

"""Causal attention over packed rows, grouped-query heads, forward and backward.

A row is covered by spans. A span (start, length, context_start, context_length) is a run of tokens: token i of
it sees the whole context and tokens 0..i of the span. Plain sequences are spans without context; responses that
share a prompt are spans whose context it is. In naive torch, for head h of a span with keys k and values v of
what it may see::

    scores = (query[own, h].float() @ k[:, h // (H // Hkv)].float().T * scale).masked_fill(~visible, -inf)
    output[own, h] = scores.softmax(-1) @ v[:, h // (H // Hkv)].float()

Positions are the caller's business. The compiled kernels keep sums in float32; where the processor multiplies
bfloat16 in tiles, probabilities and their gradients pass through bfloat16 before a product, as they do in other
fast kernels. A token's output and its gradients depend on its span and context alone: neither on what else is
in the row nor on the threads, to the last bit. Memory is linear in the tokens.

Without the kernels torch's attention is called for one span after the other; on CUDA ``varlen_attention`` serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.ops.arguments import expect, expect_device, expect_no_graph
from engine.ops.extension import available, register
from engine.ops.spans import RowSpans, check_spans, check_table
from engine.ops.varlen_attention import serves, varlen_attention

_SHORT_KEYS = 192
"""Up to here torch's attention on a CPU is several times faster in fp32 than in bf16, and longer ones slower."""


def packed_attention(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """Causal attention inside each segment of a packed row; differentiable, as :func:`span_attention` is.

    Args:
        query: [T, H, d] bfloat16, float32 or float64; any strides, though values of a head side by side save a copy.
        key: [T, Hkv, d], same dtype; Hkv divides H.
        value: [T, Hkv, d], same dtype.
        cu_seqlens: [segments + 1] int32: first token of each segment, then T; starts with 0, never falls. It is
            read here: give it on the CPU, since one on a GPU is waited for.
        scale: factor on the dot products, usually 1 / sqrt(d); not below 0.

    Returns:
        [T, H, d] contiguous, in the dtype of ``query``.

    Raises:
        ValueError: an argument has the wrong shape, dtype or range.
    """
    fits = cu_seqlens.dim() == 1 and cu_seqlens.dtype == torch.int32
    expect(fits, "cu_seqlens", "[segments + 1] int32", cu_seqlens)
    expect(query.dim() == 3, "query", "[T, H, d]", query)
    bounds, tokens = cu_seqlens.tolist(), query.shape[0]
    grows = all(left <= right for left, right in pairwise(bounds))
    whole = bool(bounds) and bounds[0] == 0 and bounds[-1] == tokens and grows
    expect(whole, "cu_seqlens", f"rising from 0 to {tokens}", bounds)
    spans = [(start, end - start, 0, 0) for start, end in pairwise(bounds)]
    return span_attention(query, key, value, torch.tensor(spans, dtype=torch.int32, device="cpu").view(-1, 4), scale)


def span_attention(query: Tensor, key: Tensor, value: Tensor, spans: Tensor | RowSpans, scale: float) -> Tensor:
    """Causal attention inside each span and to its whole context; differentiable.

    By the kernels once: they raise ``RuntimeError`` where a second gradient is asked for. Nothing waits for a GPU.

    Args:
        query: [T, H, d] bfloat16, float32 or float64; any strides, though values of a head side by side save a copy.
        key: [T, Hkv, d], same dtype; Hkv divides H.
        value: [T, Hkv, d], same dtype.
        spans: [spans, 4] int32 on the CPU: start, length, start and length of the context. Spans follow each
            other and cover the row; a context ends before its span begins. Several layers over one row share a
            record of them, so that they are checked and laid out once.
        scale: factor on the dot products, usually 1 / sqrt(d); not below 0.

    Returns:
        [T, H, d] contiguous, in the dtype of ``query``.

    Raises:
        ValueError: an argument has the wrong shape, dtype or range.
    """
    _check_shapes(query, key, value)
    expect_device(query, key=key, value=value)
    expect(scale >= 0, "scale", "at least 0", scale)
    if isinstance(spans, Tensor):
        table = spans
        check_table(table)
    else:
        table, fits = spans.table, (spans.tokens, spans.device) == (query.shape[0], query.device)
        came = f"of {spans.tokens} on {spans.device}"
        expect(fits, "spans", f"those of {query.shape[0]} tokens on {query.device}", came)
    expect(table.is_cpu or query.is_meta, "spans", "a tensor on the CPU", table.device)
    if available() and query.device.type in ("cpu", "meta") and query.dtype != torch.float64:
        output: Tensor = _op(query, key, value, table, float(scale))[0]  # which checks the spans itself
        return output
    row = RowSpans(spans, query.shape[0], query.device) if isinstance(spans, Tensor) else spans
    if serves(query):
        return varlen_attention(query, key, value, row.places, float(scale))
    return one_by_one(query, key, value, table, scale)


def one_by_one(query: Tensor, key: Tensor, value: Tensor, spans: Tensor, scale: float) -> Tensor:
    """:func:`span_attention` by torch's own attention, one call for each span: where no kernel serves."""
    places = spans.tolist()
    # Split once: each slice of its own would cost the backward a pass over the whole row.
    queries, keys, values = (x.split([length for _, length, _, _ in places]) for x in (query, key, value))
    index = {(start, length): place for place, (start, length, _, _) in enumerate(places)}
    outputs = []
    for place, (_, length, seen, context) in enumerate(places):
        if not length:
            continue
        around = [queries[place], keys[place], values[place]]
        if context:
            found = index.get((seen, context))
            shared = (key[seen : seen + context], value[seen : seen + context]) if found is None else (
                keys[found], values[found])
            around[1:] = [torch.cat(parts) for parts in zip(shared, around[1:], strict=True)]
        wide = torch.promote_types(query.dtype, torch.float32) if context + length <= _SHORT_KEYS else query.dtype
        q, k, v = (x.to(wide).transpose(0, 1)[None] for x in around)
        mixed = scaled_dot_product_attention(
            q, k, v, _visible(q, k) if context else None, is_causal=not context, scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(mixed[0].transpose(0, 1).to(query.dtype))
    return torch.cat(outputs) if outputs else query.clone()


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    expect(query.dim() == 3, "query", "[T, H, d]", query)
    dtypes = (torch.bfloat16, torch.float32, torch.float64)
    expect(query.dtype in dtypes, "query", "bfloat16, float32 or float64", query)
    tokens, heads, width = query.shape
    for name, tensor in (("key", key), ("value", value)):
        fits = tensor.dim() == 3 and (tensor.shape[0], tensor.shape[2]) == (tokens, width)
        fits = fits and tensor.dtype == query.dtype
        expect(fits, name, f"[{tokens}, Hkv, {width}] of {query.dtype}", tensor)
        divides = tensor.shape[1] > 0 and heads % tensor.shape[1] == 0
        expect(divides, name, f"Hkv that divides {heads} heads", tensor)
    expect(key.shape == value.shape, "value", f"{list(key.shape)}", value)


def span_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, spans: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The readable :func:`span_attention`, span by span; differentiable by autograd.

    float64 inputs give float64 results.

    Returns:
        output [T, H, d], and lse [T, H], the log of the sum of exp(scores), float32.
    """
    check_spans(spans, query.shape[0])
    wide = torch.promote_types(query.dtype, torch.float32)
    group = query.shape[1] // key.shape[1]
    outputs, sums = [query.new_empty(0, *query.shape[1:])], [query.new_empty(0, query.shape[1], dtype=wide)]
    for own, seen in _slices(spans):
        keys, values = (_seen(tensor, own, seen, group).to(wide) for tensor in (key, value))
        scores = _scores(query[own].to(wide), keys, scale)
        lse = scores.logsumexp(-1)
        mixed = torch.einsum("hqk,khd->qhd", (scores - lse[..., None]).exp(), values)
        outputs.append(mixed.to(query.dtype))
        sums.append(lse.T)
    return torch.cat(outputs), torch.cat(sums)


def span_gradient_reference(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, spans: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The readable gradient of :func:`span_attention` for query, key and value, from its output and lse.

    With p the probabilities and g the upstream gradient::

        d_value = p.T @ g        s = p * (g @ value.T - (g * out).sum(-1)) * scale
        d_query = s @ key        d_key = s.T @ query
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    shared = key.shape[1]
    group = query.shape[1] // shared
    d_query, d_key, d_value = (torch.zeros(tensor.shape, dtype=wide, device=tensor.device)
                               for tensor in (query, key, value))
    for own, seen in _slices(spans):
        queries, gradients = query[own].to(wide), gradient[own].to(wide)
        keys, values = (_seen(tensor, own, seen, group).to(wide) for tensor in (key, value))
        p = (_scores(queries, keys, scale) - lse[own].T[..., None]).exp()
        gain = torch.einsum("qhd,khd->hqk", gradients, values)
        s = p * (gain - (gradients * out[own].to(wide)).sum(-1).T[..., None]) * scale
        d_query[own] = torch.einsum("hqk,khd->qhd", s, keys)
        for total, part in ((d_key, torch.einsum("hqk,qhd->khd", s, queries)),
                            (d_value, torch.einsum("hqk,qhd->khd", p, gradients))):
            part = part.unflatten(1, (shared, group)).sum(2)
            context = seen.stop - seen.start
            total[seen] += part[:context]
            total[own] += part[context:]
    return d_query.to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype)


def _slices(spans: Tensor) -> Iterator[tuple[slice, slice]]:
    for start, length, seen, context in spans.tolist():
        if length:
            yield slice(start, start + length), slice(seen, seen + context)


def _seen(tensor: Tensor, own: slice, seen: slice, group: int) -> Tensor:
    return torch.cat([tensor[seen], tensor[own]]).repeat_interleave(group, 1)


def _scores(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    hidden = ~_visible(queries.transpose(0, 1), keys.transpose(0, 1))
    return (torch.einsum("qhd,khd->hqk", queries, keys) * scale).masked_fill(hidden, float("-inf"))


def _visible(queries: Tensor, keys: Tensor) -> Tensor:
    num_queries, num_keys = queries.shape[-2], keys.shape[-2]
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=keys.device).tril(num_keys - num_queries)


def _fake(query: Tensor, key: Tensor, value: Tensor, spans: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    lse = query.new_empty(query.shape[:2], dtype=torch.float32)
    return torch.empty_like(query, memory_format=torch.contiguous_format), lse


def _fake_gradient(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, spans: Tensor, scale: float
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (query, key, value))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, value, spans, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, *output, spans)


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    expect_no_graph("packed_attention")
    query, key, value, out, lse, spans = ctx.saved_tensors
    return (*_gradient_op(gradient, query, key, value, out, lse, spans, ctx.scale), None, None)


_op = register(
    "packed_attention",
    "(Tensor query, Tensor key, Tensor value, Tensor spans, float scale) -> (Tensor, Tensor)",
    span_attention_reference,
    _fake,
)
_gradient_op = register(
    "packed_attention_gradient",
    "(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, Tensor spans, float scale)"
    " -> (Tensor, Tensor, Tensor)",
    span_gradient_reference,
    _fake_gradient,
)
torch.library.register_autograd("perilune::packed_attention", _backward, setup_context=_setup_context)

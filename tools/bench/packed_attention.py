"""Attention over packed rows beside transformers' SDPA: forward and backward, time and memory.

A row is sequences of log-uniform length, bfloat16, in the shape of SmolLM2's heads. The rivals are SDPA over the
whole row with a dense mask of its blocks, built beforehand, and SDPA called for one sequence after the other. A
second row has the shape of a learner's: prompts with short responses that share them, beside one SDPA call for
every sequence with its prompt repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from engine.models.packed import Block, row_spans
from engine.ops.packed_attention import span_attention
from engine.ops.spans import RowSpans
from tools.bench.memory import peak_bytes
from tools.bench.timing import seconds_of, spread, take_turns

HEADS, SHARED_HEADS, HEAD_SIZE = 9, 3, 64
"""Of SmolLM2-135M."""
_MODULE = SimpleNamespace(num_key_value_groups=HEADS // SHARED_HEADS, is_causal=True)
_CPU = torch.device("cpu")

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def log_uniform_lengths(count: int, least: int, most: int, seed: int) -> list[int]:
    """Lengths whose logarithm is uniform.

    Example:
        >>> log_uniform_lengths(3, 8, 64, 0)
        [22, 39, 9]
    """
    draws = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [int(least * math.exp(draw * math.log(most / least))) for draw in draws.tolist()]


@dataclass(frozen=True, slots=True)
class Row:
    """What attention is given, and the gradient that comes back: [1, heads, T, d]."""

    query: Tensor
    key: Tensor
    value: Tensor
    upstream: Tensor
    """[1, T, H, d]."""

    @classmethod
    def draw(cls, tokens: int) -> Row:
        """Tokens side by side in memory, as a projection leaves them."""
        shapes = [(1, tokens, heads, HEAD_SIZE) for heads in (HEADS, SHARED_HEADS, SHARED_HEADS, HEADS)]
        query, key, value, upstream = (torch.randn(shape).bfloat16() for shape in shapes)
        return cls(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), upstream)

    def both_ways(self, attend: Attend) -> list[Tensor]:
        """Output [1, T, H, d], and the gradients of query, key and value."""
        inputs = [tensor.detach().requires_grad_() for tensor in (self.query, self.key, self.value)]
        output = attend(*inputs)
        return [output.detach(), *torch.autograd.grad(output, inputs, self.upstream)]


def ours(spans: Tensor, device: torch.device = _CPU) -> Attend:
    """The op, as a layer of the learner calls it: layers share one record of the spans."""
    row = RowSpans(spans, int(spans[:, 1].sum()), device)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        queries, keys, values = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
        return span_attention(queries, keys, values, row, HEAD_SIZE**-0.5)[None]

    return attend


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(cast(Any, _MODULE), query, key, value, mask)[0]


def dense(spans: Tensor) -> Attend:
    """SDPA of transformers under a mask [1, 1, T, T] of what every token sees."""
    tokens = int(spans[:, 1].sum())
    mask = torch.zeros(1, 1, tokens, tokens, dtype=torch.bool)
    for start, length, seen, context in spans.tolist():
        own = slice(start, start + length)
        mask[..., own, own] = torch.ones(length, length, dtype=torch.bool).tril()
        mask[..., own, seen : seen + context] = True
    return partial(_sdpa, mask=mask)


def one_by_one(spans: Tensor) -> Attend:
    """SDPA of transformers once for every span, the context before it."""
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        row, outputs = (query, key, value), []
        for start, length, seen, context in spans.tolist():
            around = (torch.cat([x[:, :, seen : seen + context], x[:, :, start : start + length]], 2) for x in row)
            queries, keys, values = around
            outputs.append(_sdpa(queries, keys, values)[:, context:])
        return torch.cat(outputs, 1)

    return attend


def _compare(row: Row, sides: dict[str, Attend], repeats: int) -> dict[str, Any]:
    work = {name: partial(row.both_ways, attend) for name, attend in sides.items()}
    found: dict[str, Any] = {f"{name}_peak_bytes": peak_bytes(side) for name, side in work.items()}
    times = take_turns({name: partial(seconds_of, side) for name, side in work.items()}, repeats)
    found |= {f"{name}_seconds": spread(values) for name, values in times.items()}
    for name in sides.keys() - {"ours"}:
        mine, theirs = (found[f"{side}_seconds"]["median"] for side in ("ours", name))
        found[f"ratio_seconds_vs_{name}"] = mine / theirs
        found[f"ratio_peak_bytes_vs_{name}"] = found["ours_peak_bytes"] / found[f"{name}_peak_bytes"]
    return found


def _growth(tokens: int) -> float:
    """Peak memory of one sequence of twice as many tokens over that of one of ``tokens``."""
    peaks = []
    for length in (tokens, 2 * tokens):
        row, attend = Row.draw(length), ours(row_spans([Block(0, length)]))
        row.both_ways(attend)
        peaks.append(peak_bytes(partial(row.both_ways, attend)))
    return peaks[1] / peaks[0]


def measure(repeats: int, sequences: int = 16, most_tokens: int = 2048, least_tokens: int = 64) -> dict[str, Any]:
    """``ratio_seconds_vs_dense`` and ``_vs_one_by_one``, and those of peak memory, for both rows; smaller is better.

    Every side runs ``repeats`` times, in turns, on ``sequences`` of ``least_tokens`` to ``most_tokens``.
    """
    lengths = log_uniform_lengths(sequences, least_tokens, most_tokens, seed=0)
    starts = [sum(lengths[:index]) for index in range(sequences)]
    plain = row_spans([Block(start, length) for start, length in zip(starts, lengths, strict=True)])
    prompt, response, samples = 45, 48, 8
    size = prompt + samples * response
    shared = row_spans([Block(index * size, prompt, (response,) * samples) for index in range(sequences // 2)])
    rows = {"packed": (plain, {"ours": ours(plain), "dense": dense(plain), "one_by_one": one_by_one(plain)}),
            "shared_prompts": (shared, {"ours": ours(shared), "one_by_one": one_by_one(shared)})}
    found: dict[str, Any] = {"growth_of_peak_bytes_at_twice_the_tokens": _growth(2 * most_tokens)}
    for name, (spans, sides) in rows.items():
        tokens = int(spans[:, 1].sum())
        found[name] = {"tokens": tokens, "spans": len(spans), **_compare(Row.draw(tokens), sides, repeats)}
    return found

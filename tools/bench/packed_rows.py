"""The ops on packed rows beside what torch offers for the same work.

Padding and its inverse move 64 sequences of log-uniform 64 to 2048 tokens, 896 values each in bf16; sums, means,
largest values, broadcasts and masks are over one number for each of these tokens; the loss, forward and backward, is
over 32,768 tokens, beside autograd over the formula. That every side gives the same result is checked first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.ops.packed_rows import pad, row_layout, unpad
from engine.ops.policy_gradient import policy_gradient
from engine.ops.segments import segment_broadcast, segment_max, segment_mean, segment_sum
from engine.ops.version_mask import version_mask
from tools.bench.timing import seconds_of, spread, take_turns

Work = Callable[[], Tensor]
_SEGMENTS, _SHORTEST, _LONGEST, _WIDTH = 64, 64, 2048, 896
_LOSS_TOKENS, _TAU, _LENGTH = 32_768, 0.1, 512.0
_CALLS = 20  # of one repeat, of what takes microseconds


def measure(repeats: int, device: str = "cpu") -> dict[str, Any]:
    """For each op: seconds of all sides, the best peer, ``ratio`` of our time to its time.

    ``error``: largest difference to float64 over the sum of magnitudes; ``fraction_of_copy``: time of a plain copy
    of the bytes that the op writes over the op's.
    """
    drawn = torch.rand(_SEGMENTS, generator=torch.Generator().manual_seed(0))
    lengths = (_SHORTEST * (_LONGEST / _SHORTEST) ** drawn).long().to(device)
    return {**_moves(lengths, repeats), **_reductions(lengths, repeats), "policy_gradient": _loss(repeats, device)}


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()


def _compare(sides: dict[str, Work], repeats: int, calls: int = 1) -> dict[str, Any]:
    """Times of all sides; the first is ours."""
    expected = sides["ours"]()
    for name, work in sides.items():
        assert name == "copy" or torch.allclose(work(), expected, rtol=1e-4, atol=1e-3), f"{name} differs from ours"

    finish = torch.cuda.synchronize if expected.is_cuda else bool

    def repeat(work: Work) -> Callable[[], float]:
        def timed() -> float:
            work(), finish()  # fetches memory that the sides before gave back to the system
            return seconds_of(lambda: ([work() for _ in range(calls)], finish())) / calls
        return timed

    times = take_turns({name: repeat(work) for name, work in sides.items()}, repeats)
    found: dict[str, Any] = {f"{name}_seconds": spread(values) for name, values in times.items()}
    medians = {name: found[f"{name}_seconds"]["median"] for name in sides}
    ours, copy = medians.pop("ours"), medians.pop("copy", None)
    best = min(medians, key=lambda name: medians[name])
    of_copy = {"fraction_of_copy": copy / ours} if copy else {}
    return {**found, "best_peer": best, "ratio": ours / medians[best], **of_copy}


def _moves(lengths: Tensor, repeats: int) -> dict[str, Any]:
    total, longest, cu_seqlens = int(lengths.sum()), int(lengths.max()), _offsets(lengths)
    packed = torch.randn(total, _WIDTH, device=lengths.device).bfloat16()
    padded = pad(packed, cu_seqlens, longest)
    positions, segment = row_layout(cu_seqlens, total)
    flat, starts, parts = segment * longest + positions, [cu_seqlens.long()], packed.split(lengths.tolist())
    jagged = torch.ops.aten._jagged_to_padded_dense_forward
    moves = {
        "pad": {
            "ours": lambda: pad(packed, cu_seqlens, longest),
            "index_put": lambda: packed.new_zeros(padded.shape).index_put_((segment, positions), packed),
            "jagged_to_padded_dense": lambda: jagged(packed, starts, [longest], 0.0),
            "pad_sequence": lambda: torch.nn.utils.rnn.pad_sequence(parts, batch_first=True),
            "copy": padded.clone,
        },
        "unpad": {
            "ours": lambda: unpad(padded, cu_seqlens, total),
            "index_select": lambda: padded.view(-1, _WIDTH).index_select(0, flat),
            "padded_dense_to_jagged": lambda: torch.ops.aten._padded_dense_to_jagged_forward(padded, starts, total),
            "copy": packed.clone,
        },
    }
    return {name: _compare(sides, repeats) for name, sides in moves.items()}


def _reductions(lengths: Tensor, repeats: int) -> dict[str, Any]:
    total, cu_seqlens = int(lengths.sum()), _offsets(lengths)
    segment = row_layout(cu_seqlens, total)[1]
    values, few = torch.randn_like(segment, dtype=torch.float32), torch.randn_like(lengths, dtype=torch.float32)

    def reduced(kind: str) -> Work:
        return lambda: torch.segment_reduce(values, kind, lengths=lengths, unsafe=True)

    def scattered(kind: str) -> Work:
        return lambda: values.new_zeros(_SEGMENTS).scatter_reduce_(0, segment, values, kind, include_self=False)

    sides: dict[str, dict[str, Work]] = {
        "segment_sum": {"ours": lambda: segment_sum(values, cu_seqlens=cu_seqlens), "segment_reduce": reduced("sum"),
                        "index_add": lambda: values.new_zeros(_SEGMENTS).index_add_(0, segment, values)},
        "segment_mean": {"ours": lambda: segment_mean(values, cu_seqlens=cu_seqlens),
                         "segment_reduce": reduced("mean"), "scatter_reduce": scattered("mean")},
        "segment_max": {"ours": lambda: segment_max(values, cu_seqlens=cu_seqlens)[0],
                        "segment_reduce": reduced("max"), "scatter_reduce": scattered("amax")},
        "segment_broadcast": {"ours": lambda: segment_broadcast(few, cu_seqlens=cu_seqlens, total=total),
                              "index_select": lambda: few.index_select(0, segment),
                              "repeat_interleave": lambda: few.repeat_interleave(lengths, output_size=total)},
    }
    versions, carries = torch.randint_like(segment, 8), values < 1.3
    sides["version_mask"] = {
        "ours": lambda: version_mask(versions, carries, 7, 3, cu_seqlens=cu_seqlens)[1],
        "index_add": lambda: versions.new_zeros(_SEGMENTS).index_add_(0, segment, (carries & (versions >= 4)).long()),
    }
    found = {name: _compare(work, repeats, _CALLS) for name, work in sides.items()}
    exact, size = (torch.segment_reduce(x.double(), "sum", lengths=lengths) for x in (values, values.abs()))
    apart = (segment_sum(values, cu_seqlens=cu_seqlens).double() - exact).abs()
    found["segment_sum"]["error"] = float((apart / size).max())
    return found


def _loss(repeats: int, device: str) -> dict[str, Any]:
    cu_seqlens = torch.arange(_SEGMENTS + 1, dtype=torch.int32, device=device) * (_LOSS_TOKENS // _SEGMENTS)
    segment = row_layout(cu_seqlens, _LOSS_TOKENS)[1]
    logprob, coefficient, reference = torch.randn(3, _LOSS_TOKENS, device=device).unbind()

    def written(values: Tensor) -> Tensor:
        drift = values.new_zeros(_SEGMENTS).index_add(0, segment, values - reference.to(values.dtype))
        return -(coefficient * values).sum() + _TAU / 2 * (drift / _LENGTH).square().sum()

    def fused(values: Tensor) -> Tensor:
        return policy_gradient(
            values, coefficient, cu_seqlens=cu_seqlens, reference=reference, tau=_TAU, length=_LENGTH
        ).loss

    def gradient(loss: Callable[[Tensor], Tensor], leaf: Tensor) -> Work:
        def work() -> Tensor:
            leaf.grad = None
            loss(leaf).backward()
            assert leaf.grad is not None
            return leaf.grad
        return work

    sides = {"ours": gradient(fused, logprob.requires_grad_()), "eager": gradient(written, logprob)}
    found = _compare(sides, repeats, _CALLS)
    exact, size = written(logprob.detach().double()), (coefficient * logprob.detach()).double().abs().sum()
    return found | {"error": float((fused(logprob.detach()).double() - exact).abs() / size)}

"""The gradient of a head: the backward of ``token_logprob``, for hidden states and head together.

In naive torch, with S from :func:`logit_gradient_reference` for the whole vocabulary::

    d_hidden = S.T @ weight
    d_weight = S @ hidden

S is made a few thousand rows of the vocabulary at a time, and never kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.ops.arguments import expect, expect_range
from engine.ops.extension import cuda_available, register

_BACKWARD_ROWS = 4096
_CUDA_BACKWARD_ROWS = 16384
_CUDA_BACKWARD_LOGITS = 1 << 27


def logit_gradient_reference(
    hidden: Tensor, weight: Tensor, target: Tensor, statistics: Tensor, start: int
) -> Tensor:
    """Gradient of the loss for raw logits of some vocabulary rows, [R, T] in the dtype of ``hidden``.

    With z the scaled logit, p its probability, g the gradients of logprob, entropy and lse::

        scale * (g_logprob * ([row = target] - p) - g_entropy * p * (z - lse + entropy) + g_lse * p)

    Args:
        hidden: [T, D].
        weight: [R, D] rows start..start+R-1 of the head.
        target: [T] int64 in the whole vocabulary.
        statistics: [7, T] float32: inverse temperature, lse, entropy, logprob of the target, g_logprob,
            g_entropy, g_lse.
        start: vocabulary index of the first row.
    """
    scale, lse, entropy, target_logprob, g_logprob, g_entropy, g_lse = statistics.unbind()
    logprobs = (weight.float() @ hidden.float().T) * scale - lse
    probs = logprobs.exp()
    shared = probs * (g_lse - g_entropy * (logprobs + entropy))
    rows = torch.arange(start, start + weight.shape[0], device=target.device)
    hit = rows[:, None] == target
    # 1 - p loses its digits as p nears 1; expm1 of the forward's own log-probability keeps them.
    on_target = shared - torch.expm1(target_logprob) * g_logprob
    return (torch.where(hit, on_target, shared - probs * g_logprob) * scale).to(hidden.dtype)


def head_gradient_reference(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    statistics: Tensor,
    rows: Tensor | None,
    want_hidden: bool,
    want_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden states [T, D] and head [V, D], the logits' own a few thousand rows of V at a time.

    Args:
        hidden: [T, D].
        weight: [V, D].
        target: [N] int64.
        statistics: [7, N], as :func:`logit_gradient_reference` takes them.
        rows: [N] int64, or None for N = T. On a GPU one out of range adds to no hidden state, and NaN to the head.
        want_hidden: False leaves the first result [0, D].
        want_weight: False leaves the second result [0, D].
    """
    chosen = hidden
    if rows is not None:
        rows, there = rows_inside(rows, hidden)
        chosen, statistics = hidden.index_select(0, rows), statistics.where(there, float("nan"))
    d_chosen = torch.zeros(chosen.shape, dtype=torch.float32, device=hidden.device)
    d_weight = torch.empty_like(weight) if want_weight else weight.new_empty(0, weight.shape[1])
    step = _backward_rows(chosen)
    for start in range(0, weight.shape[0], step):
        part = weight[start : start + step]
        d_logits = _logits_op(chosen, part, target, statistics, start)
        if want_hidden:
            _add_product(d_chosen, d_logits.T, part)
        if want_weight:
            torch.mm(d_logits, chosen, out=d_weight[start : start + step])
        del d_logits  # Before the next one is made: both together would be the largest thing in memory.
    if not want_hidden:
        return hidden.new_empty(0, hidden.shape[1]), d_weight
    if rows is not None:
        d_chosen = _spread(d_chosen.where(there[:, None], 0.0), rows, hidden.shape[0])
    return d_chosen.to(hidden.dtype), d_weight


def _spread(values: Tensor, rows: Tensor, total: int) -> Tensor:
    """Sums [total, D] of the values [N, D] of each row, in an order that does not change from run to run."""
    sums = torch.zeros(total, values.shape[1], dtype=values.dtype, device=values.device)
    if values.device.type == "cpu":
        return sums.index_add_(0, rows, values)
    # index_add_ adds by atomics on a GPU, in any order; this sorts the rows first.
    return sums.index_put_((rows,), values, accumulate=True)


def rows_inside(rows: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that exist, in place of whatever was listed, and which of them were listed: [N] int64, [N] bool.

    A CPU refuses what is out of range. Elsewhere looking at it would wait for the device, and ``index_select`` would
    end every later call there.
    """
    total = hidden.shape[0]
    expect(total > 0 or not rows.numel(), "rows", "none of 0 hidden states", rows)
    if rows.device.type == "cpu":
        _refuse(rows, total)
    inside = rows.clamp(0, max(total - 1, 0))
    return inside, inside == rows


def _refuse(rows: Tensor, total: int) -> None:
    expect_range(rows, "rows", 0, total)


def _fake_logit_gradient(
    hidden: Tensor, weight: Tensor, target: Tensor, statistics: Tensor, start: int
) -> Tensor:
    tokens = hidden.shape[0]
    if hidden.device.type == "cuda" and cuda_available():
        # Rows a multiple of eight values apart: the products that follow are slow with others.
        return hidden.new_empty(weight.shape[0], (tokens + 7) // 8 * 8)[:, :tokens]
    return hidden.new_empty(weight.shape[0], tokens)


def _fake_gradient(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    statistics: Tensor,
    rows: Tensor | None,
    want_hidden: bool,
    want_weight: bool,
) -> tuple[Tensor, Tensor]:
    width = hidden.shape[1]
    return (
        hidden.new_empty(hidden.shape[0] if want_hidden else 0, width),
        weight.new_empty(weight.shape[0] if want_weight else 0, width),
    )


def _backward_rows(hidden: Tensor) -> int:
    """Vocabulary rows of one step: many on a GPU, as far as their gradients take 256 MiB in bfloat16."""
    if hidden.device.type != "cuda":
        return _BACKWARD_ROWS
    fitting = _CUDA_BACKWARD_LOGITS // max(hidden.shape[0], 1) // 1024 * 1024
    return min(max(fitting, 1024), _CUDA_BACKWARD_ROWS)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to a float32 ``total``."""
    if total.device.type == "cuda" and left.dtype == torch.bfloat16:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        # Widened first: adding bfloat16 to float32 in one call is several times slower on a CPU.
        total += (left @ right).float()


_logits_op = register(
    "logit_gradient",
    "(Tensor hidden, Tensor weight, Tensor target, Tensor statistics, int start) -> Tensor",
    logit_gradient_reference,
    _fake_logit_gradient,
)
head_gradient = register(
    "head_gradient",
    "(Tensor hidden, Tensor weight, Tensor target, Tensor statistics, Tensor? rows, bool want_hidden,"
    " bool want_weight) -> (Tensor, Tensor)",
    head_gradient_reference,
    _fake_gradient,
)

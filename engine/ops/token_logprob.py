"""Log-probability, entropy and log-normaliser of target tokens, straight from hidden states.

In naive torch::

    logits = (hidden.float() @ weight.float().T) * inverse_temperature[:, None]
    logprob = logits.log_softmax(-1).gather(-1, target[:, None])[:, 0]
    entropy = torch.distributions.Categorical(logits=logits).entropy()

The logits are never kept: the forward keeps running sums per token while it walks the vocabulary, the
backward makes them again in chunks of it. They stay fp32 until they are summed. The values of a token
depend neither on its neighbours nor its place, nor on the number of tokens or threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.ops.arguments import expect, expect_device, expect_range
from engine.ops.extension import cuda_available, register

_BACKWARD_ROWS = 4096
_CUDA_BACKWARD_ROWS = 16384
_CUDA_BACKWARD_LOGITS = 1 << 27
_REFERENCE_TOKENS = 512


def token_logprob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    inverse_temperature: Tensor,
    *,
    rows: Tensor | None = None,
    want_entropy: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Score targets under softmax(hidden @ weight.T * inverse_temperature).

    Differentiable for ``hidden`` and ``weight`` through all three results, once. With ``rows``, only those
    hidden states are read, N is their number instead of T, and the cost follows N; rows that are not listed
    have gradient 0, a row that is listed more than once the sum of its gradients in the order of the list.

    Args:
        hidden: [T, D] bfloat16 or float32 (float64: by the reference).
        weight: [V, D], same dtype: the output head.
        target: [N] int64 in 0..V-1, already shifted.
        inverse_temperature: [N] or [1] float32, 1 / temperature of each token.
        rows: [N] int64 or int32 in 0..T-1, in any order; None for all rows in order, N = T.
        want_entropy: False leaves the entropies 0 and without gradient.

    Returns:
        logprob [N], entropy [N], lse [N] in nats, float32; lse is the log of the sum of exp(logits).

    Raises:
        ValueError: an argument has the wrong shape, dtype or range.
    """
    check_head(hidden, weight)
    tokens = hidden.shape[0]
    if rows is not None:
        is_list = rows.dim() == 1 and rows.dtype in (torch.int64, torch.int32)
        expect(is_list, "rows", "[N] int64 or int32", rows)
        tokens, rows = rows.shape[0], rows.long()
    expect(target.shape == (tokens,) and target.dtype == torch.int64, "target", f"[{tokens}] int64", target)
    fits = inverse_temperature.shape in ((1,), (tokens,))
    expect(fits, "inverse_temperature", f"[{tokens}] or [1] float32", inverse_temperature)
    expect_device(hidden, target=target, inverse_temperature=inverse_temperature, rows=rows)
    if hidden.dtype == torch.float64:
        chosen = hidden if rows is None else _chosen(hidden, rows)
        return token_logprob_reference(chosen, weight, target, inverse_temperature, want_entropy)
    fits = inverse_temperature.dtype == torch.float32
    expect(fits, "inverse_temperature", f"[{tokens}] or [1] float32", inverse_temperature)
    scale = inverse_temperature.detach().expand(tokens).contiguous()
    op, chosen_rows = (_op, ()) if rows is None else (_rows_op, (rows,))
    result: tuple[Tensor, Tensor, Tensor] = op(hidden, weight, target, scale, *chosen_rows, want_entropy)
    return result


def check_head(hidden: Tensor, weight: Tensor) -> None:
    """Raise ``ValueError`` unless hidden [T, D] and weight [V, D] fit each other."""
    dtypes = (torch.bfloat16, torch.float32, torch.float64)
    expect(hidden.dim() == 2, "hidden", "[T, D]", hidden)
    expect(hidden.dtype in dtypes, "hidden", "bfloat16, float32 or float64", hidden)
    width = hidden.shape[1]
    fits = weight.dim() == 2 and weight.shape[1] == width and weight.shape[0] > 0
    expect(fits and weight.dtype == hidden.dtype, "weight", f"[V, {width}] of {hidden.dtype}", weight)
    expect_device(hidden, weight=weight)


def token_logprob_reference(
    hidden: Tensor, weight: Tensor, target: Tensor, inverse_temperature: Tensor, want_entropy: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The readable :func:`token_logprob`, a few hundred tokens at a time; differentiable by autograd.

    float64 inputs give float64 results.
    """
    expect_range(target, "target", 0, weight.shape[0])
    wide = torch.promote_types(hidden.dtype, torch.float32)
    scale = inverse_temperature.to(wide).expand(hidden.shape[0])
    parts = []
    for start in range(0, max(hidden.shape[0], 1), _REFERENCE_TOKENS):
        rows = slice(start, start + _REFERENCE_TOKENS)
        logits = (hidden[rows].to(wide) @ weight.to(wide).T) * scale[rows, None]
        lse = logits.logsumexp(-1)
        logprobs = logits - lse[:, None]
        chosen = logprobs.gather(-1, target[rows, None])[:, 0]
        entropy = -(logprobs.exp() * logprobs).sum(-1) if want_entropy else torch.zeros_like(lse)
        parts.append((chosen, entropy, lse))
    chosen, entropy, lse = (torch.cat(column) for column in zip(*parts, strict=True))
    return chosen, entropy, lse


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
        rows: [N] int64, or None for N = T.
        want_hidden: False leaves the first result [0, D].
        want_weight: False leaves the second result [0, D].
    """
    chosen = hidden if rows is None else _chosen(hidden, rows)
    d_chosen = torch.zeros(chosen.shape, dtype=torch.float32, device=hidden.device)
    d_weight = torch.empty_like(weight) if want_weight else weight.new_empty(0, weight.shape[1])
    step = _backward_rows(chosen)
    for start in range(0, weight.shape[0], step):
        part = weight[start : start + step]
        d_logits = _gradient_op(chosen, part, target, statistics, start)
        if want_hidden:
            _add_product(d_chosen, d_logits.T, part)
        if want_weight:
            torch.mm(d_logits, chosen, out=d_weight[start : start + step])
        del d_logits  # Before the next one is made: both together would be the largest thing in memory.
    if not want_hidden:
        return hidden.new_empty(0, hidden.shape[1]), d_weight
    if rows is not None:
        d_all = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        d_chosen = d_all.index_add_(0, rows, d_chosen)
    return d_chosen.to(hidden.dtype), d_weight


def _chosen(hidden: Tensor, rows: Tensor) -> Tensor:
    if rows.device.type == "cpu":  # a GPU refuses them by itself, without anybody waiting for it
        expect_range(rows, "rows", 0, hidden.shape[0])
    return hidden.index_select(0, rows)


def _by_rows(
    hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor, rows: Tensor, want_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = _op(_chosen(hidden, rows), weight, target, scale, want_entropy)
    return result


def _fake(
    hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor, want_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    one = torch.empty_like(scale)
    return one, torch.empty_like(one), torch.empty_like(one)


def _fake_rows(
    hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor, rows: Tensor, want_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake(hidden, weight, target, scale, want_entropy)


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


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, target, scale, *rows, want_entropy = inputs
    ctx.want_entropy = want_entropy
    ctx.save_for_backward(hidden, weight, target, scale, *output, *rows)


def _backward(ctx: Any, g_logprob: Tensor, g_entropy: Tensor, g_lse: Tensor) -> tuple[Tensor | None, ...]:
    hidden, weight, target, scale, logprob, entropy, lse, *rows = ctx.saved_tensors
    want_hidden, want_weight = ctx.needs_input_grad[:2]
    if not ctx.want_entropy:
        g_entropy = torch.zeros_like(g_entropy)
    statistics = torch.stack([scale, lse, entropy, logprob, g_logprob, g_entropy, g_lse])
    d_hidden, d_weight = _head_op(
        hidden, weight, target, statistics, rows[0] if rows else None, want_hidden, want_weight
    )
    nothing = (None,) * (3 + len(rows))
    return d_hidden if want_hidden else None, d_weight if want_weight else None, *nothing


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


_op = register(
    "token_logprob",
    "(Tensor hidden, Tensor weight, Tensor target, Tensor scale, bool want_entropy)"
    " -> (Tensor, Tensor, Tensor)",
    token_logprob_reference,
    _fake,
)
_rows_op = register(
    "token_logprob_rows",
    "(Tensor hidden, Tensor weight, Tensor target, Tensor scale, Tensor rows, bool want_entropy)"
    " -> (Tensor, Tensor, Tensor)",
    _by_rows,
    _fake_rows,
)
_gradient_op = register(
    "logit_gradient",
    "(Tensor hidden, Tensor weight, Tensor target, Tensor statistics, int start) -> Tensor",
    logit_gradient_reference,
    _fake_logit_gradient,
)
_head_op = register(
    "head_gradient",
    "(Tensor hidden, Tensor weight, Tensor target, Tensor statistics, Tensor? rows, bool want_hidden,"
    " bool want_weight) -> (Tensor, Tensor)",
    head_gradient_reference,
    _fake_gradient,
)
for _name in ("token_logprob", "token_logprob_rows"):
    torch.library.register_autograd(f"perilune::{_name}", _backward, setup_context=_setup_context)

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

from engine.ops.arguments import expect, expect_device, expect_no_graph, expect_range, fitting_scale
from engine.ops.extension import register
from engine.ops.head_gradient import head_gradient, rows_inside

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

    Differentiable for ``hidden`` and ``weight`` through all three results, once: bfloat16 and float32 raise
    ``RuntimeError`` where a second gradient is asked for. With ``rows``, only those hidden states are read, N is their
    number instead of T, and the cost follows N; rows that are not listed have gradient 0, a row that is listed more
    than once the sum of its gradients: on a CPU in the order of the list, elsewhere in an order that repeats.

    Args:
        hidden: [T, D] bfloat16 or float32 (float64: by the reference).
        weight: [V, D], same dtype: the output head.
        target: [N] int64 in 0..V-1, already shifted.
        inverse_temperature: [N] or [1] float32, 1 / temperature of each token, finite and at least 0.
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
        if rows is not None:
            expect_range(rows, "rows", 0, hidden.shape[0])
        chosen = hidden if rows is None else hidden.index_select(0, rows)
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
    expect(width > 0, "hidden", "a width D above 0", hidden)
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
    scale = fitting_scale(inverse_temperature).to(wide).expand(hidden.shape[0])
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


def _by_rows(
    hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor, rows: Tensor, want_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    inside, there = rows_inside(rows, hidden)
    logprob, entropy, lse = (
        values.where(there, float("nan"))
        for values in _op(hidden.index_select(0, inside), weight, target, scale, want_entropy)
    )
    return logprob, entropy, lse


def _fake(
    hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor, want_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    one = torch.empty_like(scale)
    return one, torch.empty_like(one), torch.empty_like(one)


def _fake_rows(
    hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor, rows: Tensor, want_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake(hidden, weight, target, scale, want_entropy)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, target, scale, *rows, want_entropy = inputs
    ctx.want_entropy = want_entropy
    ctx.save_for_backward(hidden, weight, target, scale, *output, *rows)


def _backward(ctx: Any, g_logprob: Tensor, g_entropy: Tensor, g_lse: Tensor) -> tuple[Tensor | None, ...]:
    expect_no_graph("token_logprob")
    hidden, weight, target, scale, logprob, entropy, lse, *rows = ctx.saved_tensors
    want_hidden, want_weight = ctx.needs_input_grad[:2]
    if not ctx.want_entropy:
        g_entropy = torch.zeros_like(g_entropy)
    statistics = torch.stack([scale, lse, entropy, logprob, g_logprob, g_entropy, g_lse])
    d_hidden, d_weight = head_gradient(
        hidden, weight, target, statistics, rows[0] if rows else None, want_hidden, want_weight
    )
    nothing = (None,) * (3 + len(rows))
    return d_hidden if want_hidden else None, d_weight if want_weight else None, *nothing


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
for _name in ("token_logprob", "token_logprob_rows"):
    torch.library.register_autograd(f"perilune::{_name}", _backward, setup_context=_setup_context)

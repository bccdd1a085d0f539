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

from engine.ops.arguments import expect, expect_range
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
    want_entropy: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Score targets under softmax(hidden @ weight.T * inverse_temperature).

    Differentiable for ``hidden`` and ``weight`` through all three results, once.

    Args:
        hidden: [T, D] bfloat16 or float32 (float64: by the reference).
        weight: [V, D], same dtype: the output head.
        target: [T] int64 in 0..V-1, already shifted.
        inverse_temperature: [T] or [1] float32, 1 / temperature of each token.
        want_entropy: False leaves the entropies 0 and without gradient.

    Returns:
        logprob [T], entropy [T], lse [T] in nats, float32; lse is the log of the sum of exp(logits).

    Raises:
        ValueError: an argument has the wrong shape, dtype or range.
    """
    tokens = hidden.shape[0] if hidden.dim() else 0
    check_head(hidden, weight)
    expect(target.shape == (tokens,) and target.dtype == torch.int64, "target", f"[{tokens}] int64", target)
    fits = inverse_temperature.shape in ((1,), (tokens,))
    expect(fits, "inverse_temperature", f"[{tokens}] or [1] float32", inverse_temperature)
    if hidden.dtype == torch.float64:
        return token_logprob_reference(hidden, weight, target, inverse_temperature, want_entropy)
    is_float = inverse_temperature.dtype == torch.float32
    expect(is_float, "inverse_temperature", f"[{tokens}] or [1] float32", inverse_temperature)
    scale = inverse_temperature.detach().expand(tokens).contiguous()
    result: tuple[Tensor, Tensor, Tensor] = _op(hidden, weight, target, scale, want_entropy)
    return result


def check_head(hidden: Tensor, weight: Tensor) -> None:
    """Raise ``ValueError`` unless hidden [T, D] and weight [V, D] fit each other."""
    dtypes = (torch.bfloat16, torch.float32, torch.float64)
    expect(hidden.dim() == 2, "hidden", "[T, D]", hidden)
    expect(hidden.dtype in dtypes, "hidden", "bfloat16, float32 or float64", hidden)
    width = hidden.shape[1]
    fits = weight.dim() == 2 and weight.shape[1] == width and weight.shape[0] > 0
    expect(fits and weight.dtype == hidden.dtype, "weight", f"[V, {width}] of {hidden.dtype}", weight)


def logits_logprob(logits: Tensor, target: Tensor, inverse_temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of targets from logits that already exist; differentiable.

    Args:
        logits: [T, V] floating point.
        target: [T] int64 in 0..V-1.
        inverse_temperature: [T] or [1].

    Returns:
        logprob [T], entropy [T] in nats, float32 (float64 for float64 logits).

    Raises:
        ValueError: an argument has the wrong shape, dtype or range.
    """
    expect(logits.dim() == 2 and logits.is_floating_point(), "logits", "[T, V] floating point", logits)
    tokens, vocabulary = logits.shape
    expect(target.shape == (tokens,) and target.dtype == torch.int64, "target", f"[{tokens}] int64", target)
    fits = inverse_temperature.shape in ((1,), (tokens,))
    expect(fits, "inverse_temperature", f"[{tokens}] or [1]", inverse_temperature)
    expect_range(target, "target", 0, vocabulary)
    wide = torch.promote_types(logits.dtype, torch.float32)
    logprobs = (logits.to(wide) * inverse_temperature.to(wide)[:, None]).log_softmax(-1)
    chosen = logprobs.gather(-1, target[:, None])[:, 0]
    return chosen, -(logprobs.exp() * logprobs).sum(-1)


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


def _fake(
    hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor, want_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    one = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
    return one, torch.empty_like(one), torch.empty_like(one)


def _fake_gradient(
    hidden: Tensor, weight: Tensor, target: Tensor, statistics: Tensor, start: int
) -> Tensor:
    tokens = hidden.shape[0]
    if hidden.device.type == "cuda" and cuda_available():
        # Rows a multiple of eight values apart: the products that follow are slow with others.
        return hidden.new_empty(weight.shape[0], (tokens + 7) // 8 * 8)[:, :tokens]
    return hidden.new_empty(weight.shape[0], tokens)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, target, scale, want_entropy = inputs
    logprob, entropy, lse = output
    ctx.want_entropy = want_entropy
    ctx.save_for_backward(hidden, weight, target, scale, logprob, entropy, lse)


def _backward(ctx: Any, g_logprob: Tensor, g_entropy: Tensor, g_lse: Tensor) -> tuple[Tensor | None, ...]:
    hidden, weight, target, scale, logprob, entropy, lse = ctx.saved_tensors
    want_hidden, want_weight = ctx.needs_input_grad[:2]
    if not ctx.want_entropy:
        g_entropy = torch.zeros_like(g_entropy)
    statistics = torch.stack([scale, lse, entropy, logprob, g_logprob, g_entropy, g_lse])
    d_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    d_weight = torch.empty_like(weight) if want_weight else None
    step = _backward_rows(hidden)
    for start in range(0, weight.shape[0], step):
        rows = weight[start : start + step]
        d_logits = _gradient_op(hidden, rows, target, statistics, start)
        if want_hidden:
            _add_product(d_hidden, d_logits.T, rows)
        if d_weight is not None:
            torch.mm(d_logits, hidden, out=d_weight[start : start + step])
        del d_logits  # Before the next one is made: both together would be the largest thing in memory.
    return d_hidden.to(hidden.dtype) if want_hidden else None, d_weight, None, None, None


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
_gradient_op = register(
    "logit_gradient",
    "(Tensor hidden, Tensor weight, Tensor target, Tensor statistics, int start) -> Tensor",
    logit_gradient_reference,
    _fake_gradient,
)
torch.library.register_autograd("perilune::token_logprob", _backward, setup_context=_setup_context)

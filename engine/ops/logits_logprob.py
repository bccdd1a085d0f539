"""Log-probability, entropy and log-normaliser of target tokens from logits that already exist.

In naive torch::

    logprobs = (logits.float() * inverse_temperature[:, None]).log_softmax(-1)
    logprob = logprobs.gather(-1, target[:, None])[:, 0]
    entropy = -(logprobs.exp() * logprobs).sum(-1)

Logits are read once forward, and once more backward. Where hidden states and the head are at hand,
``token_logprob`` does without the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.ops.arguments import expect, expect_device, expect_no_graph, expect_range, fitting_scale
from engine.ops.extension import register


def logits_logprob(
    logits: Tensor, target: Tensor, inverse_temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Score targets under softmax(logits * inverse_temperature).

    Differentiable for ``logits`` through all three results, once: bfloat16 and float32 raise ``RuntimeError`` where a
    second gradient is asked for. A logit of minus infinity has
    probability 0 and takes no part.

    Args:
        logits: [T, V] bfloat16 or float32 (other floating point: by the reference).
        target: [T] int64 in 0..V-1.
        inverse_temperature: [T] or [1] floating point, 1 / temperature of each row, finite and at least 0.

    Returns:
        logprob [T], entropy [T], lse [T] in nats, float32 (float64 for float64 logits).

    Raises:
        ValueError: an argument has the wrong shape, dtype or range.
    """
    fits = logits.dim() == 2 and logits.is_floating_point() and logits.shape[1] > 0
    expect(fits, "logits", "[T, V] floating point", logits)
    tokens = logits.shape[0]
    expect(target.shape == (tokens,) and target.dtype == torch.int64, "target", f"[{tokens}] int64", target)
    fits = inverse_temperature.shape in ((1,), (tokens,)) and inverse_temperature.is_floating_point()
    expect(fits, "inverse_temperature", f"[{tokens}] or [1] floating point", inverse_temperature)
    expect_device(logits, target=target, inverse_temperature=inverse_temperature)
    scale = inverse_temperature.detach().expand(tokens)
    if logits.dtype not in (torch.bfloat16, torch.float32):
        return logits_logprob_reference(logits, target, scale)
    result: tuple[Tensor, Tensor, Tensor] = _op(logits, target, scale.float().contiguous())
    return result


def logits_logprob_reference(logits: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The readable :func:`logits_logprob`; differentiable by autograd."""
    expect_range(target, "target", 0, logits.shape[1])
    wide = torch.promote_types(logits.dtype, torch.float32)
    scaled = logits.to(wide) * fitting_scale(scale).to(wide)[:, None]
    lse = scaled.logsumexp(-1)
    logprobs = scaled - lse[:, None]
    # 0 times minus infinity is 0 here.
    entropy = -(logprobs.exp() * logprobs.clamp(min=-1e4)).sum(-1)
    return logprobs.gather(-1, target[:, None])[:, 0], entropy, lse


def logits_gradient_reference(logits: Tensor, target: Tensor, statistics: Tensor) -> Tensor:
    """Gradient of the loss for logits, [T, V] in their dtype.

    With z the scaled logit, p its probability, g the gradients of logprob, entropy and lse::

        scale * (g_logprob * ([column = target] - p) - g_entropy * p * (z - lse + entropy) + g_lse * p)

    Args:
        logits: [T, V].
        target: [T] int64.
        statistics: [7, T] float32: inverse temperature, lse, entropy, logprob of the target, g_logprob,
            g_entropy, g_lse.
    """
    scale, lse, entropy, target_logprob, g_logprob, g_entropy, g_lse = statistics[..., None].unbind()
    logprobs = (logits.float() * scale - lse).clamp(min=-1e4)
    probs = logprobs.exp()
    shared = probs * (g_lse - g_entropy * (logprobs + entropy))
    hit = torch.arange(logits.shape[1], device=target.device) == target[:, None]
    # 1 - p loses its digits as p nears 1; expm1 of the forward's own log-probability keeps them.
    on_target = shared - torch.expm1(target_logprob) * g_logprob
    return (torch.where(hit, on_target, shared - probs * g_logprob) * scale).to(logits.dtype)


def _fake(logits: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    one = torch.empty_like(scale)
    return one, torch.empty_like(one), torch.empty_like(one)


def _fake_gradient(logits: Tensor, target: Tensor, statistics: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, g_logprob: Tensor, g_entropy: Tensor, g_lse: Tensor) -> tuple[Tensor | None, ...]:
    expect_no_graph("logits_logprob")
    logits, target, scale, logprob, entropy, lse = ctx.saved_tensors
    statistics = torch.stack([scale, lse, entropy, logprob, g_logprob, g_entropy, g_lse])
    return _gradient_op(logits, target, statistics), None, None


_op = register(
    "logits_logprob",
    "(Tensor logits, Tensor target, Tensor scale) -> (Tensor logprob, Tensor entropy, Tensor lse)",
    logits_logprob_reference,
    _fake,
)
_gradient_op = register(
    "logits_gradient",
    "(Tensor logits, Tensor target, Tensor statistics) -> Tensor",
    logits_gradient_reference,
    _fake_gradient,
)
torch.library.register_autograd("perilune::logits_logprob", _backward, setup_context=_setup_context)

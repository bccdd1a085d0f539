"""Rival ways to the log-probability of a token from its hidden state, restated in own words or called where installed.

``eager`` keeps the logits and widens them to float32. ``chunked`` walks 512 tokens at a time in both directions and
keeps nothing, the form of verl's torch FusedLinearForPPO. Liger and CCE know neither entropies nor temperatures: they
are given hidden states that are scaled already, rounded to their dtype.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Scores = tuple[Tensor, ...]
Peer = Callable[[Tensor, Tensor, Tensor, Tensor], Scores]
_CHUNK = 512


def eager(hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor) -> Scores:
    """Log-probability and entropy from logits that stay for the backward."""
    logprobs = ((hidden @ weight.T).float() * scale[:, None]).log_softmax(-1)
    return logprobs.gather(-1, target[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor) -> Scores:
        """Scores, chunk by chunk."""
        ctx.save_for_backward(hidden, weight, target, scale)
        parts = [eager(hidden[i : i + _CHUNK], weight, target[i : i + _CHUNK], scale[i : i + _CHUNK])
                 for i in range(0, hidden.shape[0], _CHUNK)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    @staticmethod
    def backward(ctx: Any, g_logprob: Tensor, g_entropy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients, with the logits of each chunk made again."""
        hidden, weight, target, scale = ctx.saved_tensors
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for i in range(0, hidden.shape[0], _CHUNK):
            rows = slice(i, i + _CHUNK)
            logprobs = ((hidden[rows] @ weight.T).float() * scale[rows, None]).log_softmax(-1)
            probs = logprobs.exp()
            entropy = -(probs * logprobs).sum(-1, keepdim=True)
            d_logits = probs * (-g_logprob[rows, None])
            d_logits.scatter_add_(1, target[rows, None], g_logprob[rows, None])
            d_logits -= g_entropy[rows, None] * probs * (logprobs + entropy)
            d_logits = (d_logits * scale[rows, None]).to(hidden.dtype)
            d_hidden[rows] = d_logits @ weight
            d_weight += d_logits.T @ hidden[rows]
        return d_hidden, d_weight, None, None


def chunked(hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor) -> Scores:
    """Log-probability and entropy, 512 tokens at a time."""
    result: Scores = _Chunked.apply(hidden, weight, target, scale)
    return result


def _heated(hidden: Tensor, scale: Tensor) -> Tensor:
    return (hidden * scale[:, None]).to(hidden.dtype)


def _liger(hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor) -> Scores:
    home = importlib.import_module("liger_kernel.ops.fused_linear_cross_entropy")
    heated = _heated(hidden, scale)
    loss = home.LigerFusedLinearCrossEntropyFunction.apply(heated, weight, target, None, None, -100, 0.0, 0.0, "mean")
    return (-(loss[0] if isinstance(loss, tuple) else loss),)


def _cce(hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor) -> Scores:
    score = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return (-score(_heated(hidden, scale), weight, target, reduction="none", filter_eps=None),)


def installed() -> dict[str, Peer]:
    """Every rival that can run here; Liger's gradient is of a mean, made in its forward."""
    found: dict[str, Peer] = {"eager": eager, "chunked": chunked}
    if importlib.util.find_spec("liger_kernel"):
        found["liger_mean"] = _liger
    if importlib.util.find_spec("cut_cross_entropy"):
        found["cce_exact"] = _cce
    return found

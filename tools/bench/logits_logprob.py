"""``logits_logprob`` beside torch, over logits that exist, in bfloat16: forward, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.ops.logits_logprob import logits_logprob
from tools.bench.timing import Side, seconds_of, spread, take_turns
from tools.bench.token_logprob import head_shape

_CHECKED_ROWS = 16

Score = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""logits, target, inverse temperature -> log-probabilities, entropies."""


def measure(repeats: int, small: bool = False) -> dict[str, Any]:
    """Ratios of time (ours over theirs), errors against float64."""
    shape = head_shape(small)
    tokens = shape.backward_tokens
    generator = torch.Generator().manual_seed(7)
    logits = (torch.randn(tokens, shape.vocabulary, generator=generator) * 3).bfloat16()
    target = torch.randint(0, shape.vocabulary, (tokens,), generator=generator)
    scale = torch.rand(tokens, generator=generator) + 0.5
    scores: dict[str, Score] = {"perilune": perilune, "eager": eager, "compiled": torch.compile(eager)}
    found: dict[str, Any] = {"logits_logprob_tokens": tokens}
    for name, call in (("forward", _forward), ("forward_backward", _forward_backward)):

        def side(score: Score, call: Callable[..., Any] = call) -> Side:
            return lambda: seconds_of(lambda: call(score, logits, target, scale))

        times = take_turns({other: side(score) for other, score in scores.items()}, repeats)
        seconds = {other: spread(values) for other, values in times.items()}
        found |= {f"logits_logprob_{name}_seconds_{other}": value for other, value in seconds.items()}
        for other in ("eager", "compiled"):
            ratio = seconds["perilune"]["median"] / seconds[other]["median"]
            found[f"logits_logprob_{name}_time_over_{other}"] = ratio
    rows = torch.linspace(0, tokens - 1, min(_CHECKED_ROWS, tokens)).long()
    exact = eager(logits[rows].double(), target[rows], scale[rows].double())
    for other, score in scores.items():
        got = _forward(score, logits, target, scale)
        error = max(float((a[rows].double() - b).abs().max()) for a, b in zip(got, exact, strict=True))
        found[f"logits_logprob_error_{other}"] = error
    return found


def perilune(logits: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The op."""
    logprob, entropy, _ = logits_logprob(logits, target, scale)
    return logprob, entropy


def eager(logits: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Widened, scaled, log_softmax."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    logprobs = (logits.to(wide) * scale[:, None]).log_softmax(-1)
    return logprobs.gather(-1, target[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def _forward(score: Score, logits: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return score(logits, target, scale)


def _forward_backward(score: Score, logits: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    logits = logits.detach().requires_grad_()
    logprob, entropy = score(logits, target, scale)
    loss = (logprob * torch.linspace(-1.0, 1.0, logprob.shape[0])).sum() + 0.01 * entropy.sum()
    return torch.autograd.grad(loss, logits)[0]

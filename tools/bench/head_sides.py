"""Log-probabilities and entropies from an output head, as Perilune and as others make them.

- ``perilune``: ``engine.ops.token_logprob``
- ``eager``: a product in the dtype of the head, widened, log_softmax; ``compiled``: the same through torch.compile
- ``chunked``: 8192 vocabulary columns at a time with running sums, recomputed for the backward pass, as
  trainers without a fused kernel do it; restated from what they publish. Its entropy has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from engine.ops.token_logprob import token_logprob

_CHUNK = 8192
_ROWS = 4096
ENTROPY_WEIGHT = 0.01
"""Of entropies in the loss whose gradients are taken."""

Score = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""hidden, weight, target, inverse temperature -> log-probabilities, entropies."""


@dataclass(frozen=True)
class HeadInputs:
    """One problem; hidden states and weight of a scale that puts the largest logits between 10 and 20."""

    hidden: Tensor
    weight: Tensor
    target: Tensor
    scale: Tensor

    @classmethod
    def draw(cls, tokens: int, width: int, vocabulary: int, dtype: torch.dtype = torch.bfloat16) -> HeadInputs:
        """Always the same numbers; made a few thousand rows at a time, so that no peak of memory is left."""
        generator = torch.Generator().manual_seed(7)
        weight = torch.empty(vocabulary, width, dtype=dtype)
        for rows in weight.split(_ROWS):
            rows.copy_(torch.randn(rows.shape, generator=generator) * 3 / width**0.5)
        hidden = torch.randn(tokens, width, generator=generator).to(dtype)
        target = torch.randint(0, vocabulary, (tokens,), generator=generator)
        return cls(hidden, weight, target, torch.rand(tokens, generator=generator) + 0.5)

    def exact(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of some tokens in float64."""
        hidden, scale = self.hidden[rows].double(), self.scale[rows].double()[:, None]
        logits = torch.cat([hidden @ part.double().T for part in self.weight.split(_ROWS)], 1) * scale
        logprobs = logits.log_softmax(-1)
        return logprobs.gather(-1, self.target[rows, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)

    def error(self, found: tuple[Tensor, Tensor], rows: Tensor) -> float:
        """Largest distance from float64 over some tokens, in nats."""
        return max(
            float((ours[rows].double() - exact).abs().max())
            for ours, exact in zip(found, self.exact(rows), strict=True)
        )


@cache
def sides() -> dict[str, Score]:
    """Every way to score, by name."""
    return {"perilune": perilune, "eager": eager, "compiled": torch.compile(eager), "chunked": chunked}


def perilune(hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The op."""
    logprob, entropy, _ = token_logprob(hidden, weight, target, scale)
    return logprob, entropy


def eager(hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """All logits at once."""
    logprobs = ((hidden @ weight.T).float() * scale[:, None]).log_softmax(-1)
    return logprobs.gather(-1, target[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def chunked(hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Running sums over chunks of the vocabulary."""
    found: tuple[Tensor, Tensor] = _Chunked.apply(hidden, weight, target, scale)  # type: ignore[no-untyped-call]
    return found


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        maximum = torch.full_like(scale, -torch.inf)
        total, weighted, chosen = (torch.zeros_like(scale) for _ in range(3))
        for start, logits in _chunks(hidden, weight, scale):
            larger = torch.maximum(maximum, logits.amax(-1))
            keep, powers = (maximum - larger).exp(), (logits - larger[:, None]).exp()
            total = total * keep + powers.sum(-1)
            weighted = weighted * keep + (powers * logits).sum(-1)
            inside = (target >= start) & (target < start + logits.shape[1])
            at = (target - start).clamp(0, logits.shape[1] - 1)
            chosen = torch.where(inside, logits.gather(-1, at[:, None])[:, 0], chosen)
            maximum = larger
        lse = maximum + total.log()
        ctx.save_for_backward(hidden, weight, target, scale, lse)
        return chosen - lse, lse - weighted / total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, target, scale, lse = ctx.saved_tensors
        d_hidden, d_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
        for start, logits in _chunks(hidden, weight, scale):
            d_logits = -(logits - lse[:, None]).exp()
            inside = ((target >= start) & (target < start + logits.shape[1])).nonzero()[:, 0]
            d_logits[inside, target[inside] - start] += 1.0
            d_logits = (d_logits * (gradients[0] * scale)[:, None]).to(hidden.dtype)
            rows = slice(start, start + logits.shape[1])
            d_hidden += d_logits @ weight[rows]
            d_weight[rows] = d_logits.T @ hidden
        return d_hidden, d_weight, None, None


def _chunks(hidden: Tensor, weight: Tensor, scale: Tensor) -> Any:
    for start in range(0, weight.shape[0], _CHUNK):
        yield start, (hidden @ weight[start : start + _CHUNK].T).float() * scale[:, None]


def forward(score: Score, inputs: HeadInputs) -> tuple[Tensor, Tensor]:
    """Scores without gradients."""
    with torch.no_grad():
        return score(inputs.hidden, inputs.weight, inputs.target, inputs.scale)


def upstream(tokens: int) -> Tensor:
    """What log-probs are multiplied by in that loss: [tokens]."""
    return torch.linspace(-1.0, 1.0, tokens)


def forward_backward(score: Score, inputs: HeadInputs) -> tuple[Tensor, Tensor]:
    """Gradients of hidden states and weight, of log-probs with weights of their own and of entropies."""
    hidden, weight = inputs.hidden.detach().requires_grad_(), inputs.weight.detach().requires_grad_()
    logprob, entropy = score(hidden, weight, inputs.target, inputs.scale)
    loss = (logprob * upstream(logprob.shape[0])).sum()
    if score is not chunked:
        loss = loss + ENTROPY_WEIGHT * entropy.sum()
    d_hidden, d_weight = torch.autograd.grad(loss, [hidden, weight])
    return d_hidden, d_weight

"""``token_logprob`` forward beside torch's own op for a head's loss, ``torch.nn.functional.linear_cross_entropy``.

Torch's is asked for one value a token in chunks, so that logits do not all exist, and knows no temperature and no
entropy, which ours makes as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tools.bench.head_sides import HeadInputs, Score, forward, perilune
from tools.bench.token_logprob import checked_rows, forward_beside, head_shape

_NAME = "token_logprob_without_temperature"


def measure(repeats: int, small: bool = False) -> dict[str, Any]:
    """Ratio of time (ours over torch's), errors of log-probs against float64; why there is none before torch 2.13."""
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):
        return {"linear_cross_entropy": f"left out: torch {torch.__version__} has no such op"}
    shape = head_shape(small)
    tokens = shape.forward_tokens // 4
    drawn = HeadInputs.draw(tokens, shape.width, shape.vocabulary)
    inputs = HeadInputs(drawn.hidden, drawn.weight, drawn.target, torch.ones(tokens))
    scores: dict[str, Score] = {"perilune": perilune, "linear_cross_entropy": theirs}
    found, rows = forward_beside(_NAME, scores, inputs, repeats), checked_rows(inputs)
    exact, _ = inputs.exact(rows)
    for name, score in scores.items():
        logprob, _ = forward(score, inputs)
        found[f"{_NAME}_error_{name}"] = float((logprob[rows].double() - exact).abs().max())
    return found


def theirs(hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs in the dtype of the hidden states; entropies are NaN."""
    chunks = torch.nn.LinearCrossEntropyOptions()
    loss = torch.nn.functional.linear_cross_entropy(hidden, weight, target, reduction="none", options=chunks)
    return -loss, torch.full_like(scale, torch.nan)

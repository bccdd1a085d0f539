"""``token_logprob`` forward beside torch's own op for a head's loss, ``torch.nn.functional.linear_cross_entropy``.

Torch's is asked for one value a token in chunks, so that logits do not all exist, and knows no temperature and no
entropy, which ours makes as well.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tools.bench.head_sides import HeadInputs, Score, forward, perilune
from tools.bench.timing import seconds_of, spread, take_turns
from tools.bench.token_logprob import head_shape

_NAME = "token_logprob_without_temperature"
_CHECKED_ROWS = 16


def measure(repeats: int, small: bool = False) -> dict[str, Any]:
    """Ratio of time (ours over torch's), errors of log-probs against float64; why there is none before torch 2.13."""
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):
        return {"linear_cross_entropy": f"left out: torch {torch.__version__} has no such op"}
    shape = head_shape(small)
    tokens = shape.forward_tokens // 4
    drawn = HeadInputs.draw(tokens, shape.width, shape.vocabulary)
    inputs = HeadInputs(drawn.hidden, drawn.weight, drawn.target, torch.ones(tokens))
    scores: dict[str, Score] = {"perilune": perilune, "linear_cross_entropy": theirs}
    times = take_turns(
        {name: partial(seconds_of, partial(forward, score, inputs)) for name, score in scores.items()}, repeats
    )
    found: dict[str, Any] = {f"{_NAME}_tokens": tokens}
    found |= {f"{_NAME}_seconds_{name}": spread(values) for name, values in times.items()}
    ours, torchs = (found[f"{_NAME}_seconds_{name}"]["median"] for name in scores)
    found[f"{_NAME}_time_over_linear_cross_entropy"] = ours / torchs
    rows = torch.linspace(0, tokens - 1, min(_CHECKED_ROWS, tokens)).long()
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

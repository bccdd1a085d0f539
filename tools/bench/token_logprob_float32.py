"""``token_logprob`` forward with a head in float32, beside the same product and log_softmax in torch."""

from __future__ import annotations

from typing import Any

import torch

from tools.bench.head_sides import HeadInputs, Score, eager, perilune
from tools.bench.token_logprob import errors, forward_beside, head_shape

_NAME = "token_logprob_float32_forward"


def measure(repeats: int, small: bool = False) -> dict[str, Any]:
    """Ratio of time (ours over eager's), errors against float64."""
    shape = head_shape(small)
    inputs = HeadInputs.draw(shape.forward_tokens, shape.width, shape.vocabulary, torch.float32)
    scores: dict[str, Score] = {"perilune": perilune, "eager": eager}
    return forward_beside(_NAME, scores, inputs, repeats) | errors(inputs, _NAME, scores)

"""``token_logprob`` forward with a head in float32, beside the same product and log_softmax in torch."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tools.bench.head_sides import HeadInputs, Score, eager, forward, perilune
from tools.bench.timing import seconds_of, spread, take_turns
from tools.bench.token_logprob import head_shape

_NAME = "token_logprob_float32_forward"
_CHECKED_ROWS = 16


def measure(repeats: int, small: bool = False) -> dict[str, Any]:
    """Ratio of time (ours over eager's), errors against float64."""
    shape = head_shape(small)
    inputs = HeadInputs.draw(shape.forward_tokens, shape.width, shape.vocabulary, torch.float32)
    scores: dict[str, Score] = {"perilune": perilune, "eager": eager}
    times = take_turns(
        {name: partial(seconds_of, partial(forward, score, inputs)) for name, score in scores.items()}, repeats
    )
    found: dict[str, Any] = {f"{_NAME}_tokens": shape.forward_tokens}
    found |= {f"{_NAME}_seconds_{name}": spread(values) for name, values in times.items()}
    ours, theirs = (found[f"{_NAME}_seconds_{name}"]["median"] for name in scores)
    found[f"{_NAME}_time_over_eager"] = ours / theirs
    rows = torch.linspace(0, shape.forward_tokens - 1, min(_CHECKED_ROWS, shape.forward_tokens)).long()
    return found | {f"{_NAME}_error_{name}": inputs.error(forward(score, inputs), rows)
                    for name, score in scores.items()}

"""``sample`` beside a product, softmax and multinomial, as a decoding step draws its tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.ops.sample import sample
from tools.bench.ceiling import ceiling_side, fraction
from tools.bench.head_sides import HeadInputs
from tools.bench.timing import Side, seconds_of, spread, take_turns
from tools.bench.token_logprob import head_shape


def measure(repeats: int, small: bool = False) -> dict[str, Any]:
    """Ratios of time (ours over theirs), fraction of the ceiling, error of the log-probs against float64."""
    shape = head_shape(small)
    inputs = HeadInputs.draw(shape.sampled_tokens, shape.width, shape.vocabulary)
    temperature = 1.0 / inputs.scale
    key = torch.arange(shape.sampled_tokens)

    def ours() -> tuple[Tensor, Tensor]:
        return sample(inputs.hidden, inputs.weight, temperature, key, key)

    def theirs() -> tuple[Tensor, Tensor]:
        logprobs = ((inputs.hidden @ inputs.weight.T).float() / temperature[:, None]).log_softmax(-1)
        token = logprobs.exp().multinomial(1)
        return token[:, 0], logprobs.gather(-1, token)[:, 0]

    turns: dict[str, Side] = {"perilune": lambda: seconds_of(ours), "eager": lambda: seconds_of(theirs)}
    if (ceiling := ceiling_side()) is not None:
        turns["ceiling"] = ceiling
    with torch.no_grad():
        times = take_turns(turns, repeats)
        token, logprob = ours()
    found: dict[str, Any] = {"sample_tokens": shape.sampled_tokens}
    found |= {f"sample_seconds_{side}": spread(values) for side, values in times.items()}
    seconds = {side: found[f"sample_seconds_{side}"]["median"] for side in times}
    found["sample_time_over_eager"] = seconds["perilune"] / seconds["eager"]
    if ceiling is not None:
        operations = 2 * shape.sampled_tokens * shape.width * shape.vocabulary
        found["sample_fraction_of_ceiling"] = fraction(operations, seconds["perilune"], seconds["ceiling"])
    drawn = HeadInputs(inputs.hidden, inputs.weight, token, 1.0 / temperature)
    rows = torch.arange(0, shape.sampled_tokens, 4)
    found["sample_error_perilune"] = float((logprob[rows].double() - drawn.exact(rows)[0]).abs().max())
    return found

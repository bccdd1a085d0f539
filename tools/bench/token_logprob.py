"""``token_logprob`` beside torch: forward, forward and backward, and a fifth of the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.ops.token_logprob import token_logprob
from tools.bench.ceiling import ceiling_side, fraction
from tools.bench.error import relative_error
from tools.bench.extra_memory import MemoryJob, extra_bytes
from tools.bench.head_sides import HeadInputs, Score, forward, forward_backward, sides
from tools.bench.head_truth import exact_gradients
from tools.bench.timing import Side, seconds_of, spread, take_turns

_CHECKED_ROWS = 16
_CHECKED_ENTRIES = 512  # of the vocabulary
_ACTIVE = 5  # every fifth row


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Sizes of one problem; the head is that of Qwen2.5-0.5B unless small."""

    forward_tokens: int = 1024
    backward_tokens: int = 512
    sampled_tokens: int = 64
    width: int = 896
    vocabulary: int = 151_936


SMALL_HEAD = HeadShape(24, 16, 8, 64, 1000)


def head_shape(small: bool) -> HeadShape:
    """The sizes of the claims, or tiny ones that try the harness."""
    return SMALL_HEAD if small else HeadShape()


def measure(repeats: int, small: bool = False) -> dict[str, Any]:
    """Ratios of time and memory (ours over theirs), fractions of the ceiling, errors against float64."""
    shape = head_shape(small)
    found = _direction(shape, shape.forward_tokens, False, repeats)
    found |= _direction(shape, shape.backward_tokens, True, repeats)
    return found | _active_rows(shape, repeats)


def _direction(shape: HeadShape, tokens: int, backward: bool, repeats: int) -> dict[str, Any]:
    inputs = HeadInputs.draw(tokens, shape.width, shape.vocabulary)
    call = forward_backward if backward else forward
    name = "token_logprob_forward_backward" if backward else "token_logprob_forward"

    def side(score: Score) -> Side:
        return lambda: seconds_of(lambda: call(score, inputs))

    turns = {other: side(score) for other, score in sides().items()}
    if (ceiling := ceiling_side()) is not None:
        turns["ceiling"] = ceiling
    times = take_turns(turns, repeats)
    found: dict[str, Any] = {f"{name}_tokens": tokens}
    found |= {f"{name}_seconds_{other}": spread(values) for other, values in times.items()}
    seconds = {other: found[f"{name}_seconds_{other}"]["median"] for other in times}
    others = [other for other in sides() if other != "perilune"]
    found |= {f"{name}_time_over_{other}": seconds["perilune"] / seconds[other] for other in others}
    if ceiling is not None:
        operations = (8 if backward else 2) * tokens * shape.width * shape.vocabulary
        found[f"{name}_fraction_of_ceiling"] = fraction(operations, seconds["perilune"], seconds["ceiling"])
    extra = {
        other: extra_bytes(MemoryJob(other, backward, tokens, shape.width, shape.vocabulary,
                                     torch.get_num_threads()))
        for other in ("perilune", "eager", "chunked")
    }
    found |= {f"{name}_extra_bytes_{other}": count for other, count in extra.items()}
    found[f"{name}_memory_over_eager"] = extra["perilune"] / max(extra["eager"], 1)
    return found | (_gradient_errors(inputs, name) if backward else errors(inputs, name, sides()))


def forward_beside(name: str, scores: dict[str, Score], inputs: HeadInputs, repeats: int) -> dict[str, Any]:
    """Seconds of our forward and of one other's, the first and the second of the sides, and ours over theirs."""
    times = take_turns(
        {side: partial(seconds_of, partial(forward, score, inputs)) for side, score in scores.items()}, repeats
    )
    found: dict[str, Any] = {f"{name}_tokens": inputs.hidden.shape[0]}
    found |= {f"{name}_seconds_{side}": spread(values) for side, values in times.items()}
    ours, theirs = scores
    found[f"{name}_time_over_{theirs}"] = (
        found[f"{name}_seconds_{ours}"]["median"] / found[f"{name}_seconds_{theirs}"]["median"]
    )
    return found


def checked_rows(inputs: HeadInputs) -> Tensor:
    """Tokens that are compared with float64, spread evenly."""
    tokens = inputs.hidden.shape[0]
    return torch.linspace(0, tokens - 1, min(_CHECKED_ROWS, tokens)).long()


def errors(inputs: HeadInputs, name: str, scores: dict[str, Score]) -> dict[str, float]:
    """Nats from float64 over the checked rows."""
    rows = checked_rows(inputs)
    return {f"{name}_error_{side}": inputs.error(forward(score, inputs), rows) for side, score in scores.items()}


def _gradient_errors(inputs: HeadInputs, name: str) -> dict[str, float]:
    """Relative distances (Frobenius) from float64 of gradients: of some hidden states, of some rows of the weight."""
    rows, vocabulary = checked_rows(inputs), inputs.weight.shape[0]
    spread_out = torch.linspace(0, vocabulary - 1, min(_CHECKED_ENTRIES, vocabulary)).long()
    entries = torch.cat([spread_out, inputs.target[rows]]).unique()
    exact = exact_gradients(inputs, rows, entries)
    found = {}
    for other, score in sides().items():
        if other != "chunked":  # its entropy has no gradient
            d_hidden, d_weight = forward_backward(score, inputs)
            found[f"{name}_d_hidden_error_{other}"] = relative_error(d_hidden[rows], exact[0])
            found[f"{name}_d_weight_error_{other}"] = relative_error(d_weight[entries], exact[1])
    return found


def _active_rows(shape: HeadShape, repeats: int) -> dict[str, Any]:
    """Time with a fifth of the rows over time with all."""
    found: dict[str, Any] = {}
    inputs = HeadInputs.draw(shape.forward_tokens, shape.width, shape.vocabulary)
    rows = torch.arange(0, shape.forward_tokens, _ACTIVE)
    some = HeadInputs(inputs.hidden, inputs.weight, inputs.target[rows], inputs.scale[rows])

    def listed(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        logprob, entropy, _ = token_logprob(*arguments, rows=rows)
        return logprob, entropy

    def side(score: Score, problem: HeadInputs, call: Callable[[Score, HeadInputs], Any]) -> Side:
        return lambda: seconds_of(lambda: call(score, problem))

    for name, call in (("forward", forward), ("forward_backward", forward_backward)):
        turns = {"all": side(sides()["perilune"], inputs, call), "some": side(listed, some, call)}
        times = {turn: spread(values) for turn, values in take_turns(turns, repeats).items()}
        found |= {f"active_rows_{name}_seconds_{turn}": values for turn, values in times.items()}
        found[f"active_rows_{name}_time_over_all"] = times["some"]["median"] / times["all"]["median"]
    return found

"""An op of the sampler's decoder beside torch, in the shape of a decoding step of Qwen2.5-0.5B with 64 slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tools.bench.error import relative_error
from tools.bench.timing import seconds_of, spread, take_turns

_CALLS = 20  # of one repeat, for one takes microseconds
OURS = "perilune"

Work = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """One token of each slot, and what a layer does with it."""

    tokens: int = 64
    width: int = 896
    gates: int = 4864
    heads: int = 14
    shared_heads: int = 2
    head_size: int = 64
    capacity: int = 1024
    """Positions of a slot of the key-value cache."""


SMALL_DECODER = DecoderShape(6, 32, 48, 4, 2, 16, 24)


def decoder_shape(small: bool) -> DecoderShape:
    """The sizes of the claims, or tiny ones that try the harness."""
    return SMALL_DECODER if small else DecoderShape()


@torch.no_grad()
def compare(name: str, sides: Mapping[str, Work], exact: Tensor, repeats: int) -> dict[str, Any]:
    """Time and error of one op.

    Args:
        name: of the op; results are named after it.
        sides: ``perilune`` and its peers; each answers its result.
        exact: the result in float64.
        repeats: kept repeats of each side.

    Returns:
        For each side ``_seconds_`` of a call and ``_error_``, the relative distance from float64 (Frobenius); for
        each peer ``_time_over_``, our median time over its.
    """
    found: dict[str, Any] = {f"{name}_error_{side}": relative_error(work(), exact) for side, work in sides.items()}
    times = take_turns({side: partial(_seconds, work) for side, work in sides.items()}, repeats)
    seconds = {side: spread(values) for side, values in times.items()}
    found |= {f"{name}_seconds_{side}": values for side, values in seconds.items()}
    ours = seconds.pop(OURS)["median"]
    return found | {f"{name}_time_over_{side}": ours / values["median"] for side, values in seconds.items()}


def _seconds(work: Work) -> float:
    def calls() -> None:
        for _ in range(_CALLS):
            work()

    return seconds_of(calls) / _CALLS

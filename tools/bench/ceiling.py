"""How much of what the processor can multiply an op reaches."""

from __future__ import annotations

import torch

from engine.ops.extension import available
from tools.bench.timing import Side, seconds_of

_ROUNDS = 400_000


def ceiling_side(rounds: int = _ROUNDS) -> Side | None:
    """Seconds of one multiplication from registers on all threads; None without the compiled ops."""
    if not available():
        return None
    return lambda: seconds_of(lambda: torch.ops.perilune.cpu_ceiling(rounds))


def ceiling_operations(rounds: int = _ROUNDS) -> int:
    """Floating-point operations of one repeat of :func:`ceiling_side`."""
    return int(torch.ops.perilune.cpu_ceiling(rounds))


def fraction(operations: float, seconds: float, ceiling_seconds: float, rounds: int = _ROUNDS) -> float:
    """Rate of an op over the rate of the ceiling."""
    return operations / seconds / (ceiling_operations(rounds) / ceiling_seconds)

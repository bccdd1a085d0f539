"""What an actor did, and from when to when: the pieces that a trace is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of work."""

    kind: str
    """prefill, decode, receive, judge, pack, forward, backward, optimiser or publish; on shared devices wake, sleep,
    onload or offload too."""
    start: float
    """Seconds of its process's wall clock, advanced by a clock that never jumps."""
    stop: float
    amounts: Mapping[str, float] = field(default_factory=dict)
    """How much was done: ``steps``, ``tokens``, ``items``."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.stop - self.start

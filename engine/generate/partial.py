"""Partial rollouts: a trajectory spends the round's budget, is cut into a segment, and goes on later.

The round budget counts output tokens that one trajectory may spend in one round (Kimi k1.5, section
2.6.2). What was cut is never sampled again: the next sampler prefills it and continues the same random
stream at the next position.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.records.trajectory import FinishReason, Segment
from engine.records.version import PolicyVersion
from engine.records.work import Delivery, Request

_NEVER = 2**62


@dataclass(slots=True)
class OpenTrajectory:
    """A request while it holds a slot: closed segments, and the one being sampled."""

    request: Request
    version: PolicyVersion
    """Of the open segment."""
    oldest_key_version: PolicyVersion
    start: int
    """Response position at which the open segment began."""
    first: int
    """Response position at which this stay in a slot began."""
    closed: list[Segment] = field(default_factory=list)
    recomputed: int = 0
    """Positions that had keys before the last swap, and lost them by it."""

    @classmethod
    def begin(cls, request: Request, version: PolicyVersion,
              oldest_key_version: PolicyVersion | None = None) -> OpenTrajectory:
        """Take a slot under the weights served now; None: all keys will be computed by them."""
        earlier = len(request.generated)
        return cls(request, version, oldest_key_version or version, earlier, earlier)

    @property
    def cut_length(self) -> int:
        """Response length at which the round budget is spent; beyond any response without a budget."""
        budget = self.request.round_budget_tokens
        return _NEVER if budget is None else self.first + budget

    def prefill_causes(self, first: int, count: int) -> dict[str, int]:
        """Why ``count`` keys from position ``first`` on must be computed: cause -> keys.

        The causes are ``swap`` (other weights took the key away), ``resume`` (cut earlier) and ``prompt``.
        """
        again = min(max(self.recomputed - first, 0), count)
        return {"swap": again, "resume" if self.first else "prompt": count - again}

    def close_segment(self, response: NDArray[np.int64], logprobs: NDArray[np.float32]) -> None:
        """Close the open segment at the end of ``response``; an empty one is not kept."""
        if len(response) > self.start:
            tokens = response[self.start :].astype(np.int32)
            self.closed.append(
                Segment(
                    token_ids=tokens,
                    sampled=np.ones(len(tokens), bool),
                    behaviour_logprob=logprobs[self.start :].astype(np.float32),
                    version=self.version,
                    temperature=self.request.temperature,
                    oldest_key_version=self.oldest_key_version,
                )
            )
        self.start = len(response)

    def swapped(self, version: PolicyVersion, keys: int, kept: bool) -> None:
        """Go on under other weights; the open segment must be closed before.

        Args:
            version: of the other weights.
            keys: positions of the trajectory that have keys now.
            kept: they stay; otherwise all are to be computed again.
        """
        self.version = version
        if not kept:
            self.recomputed = max(self.recomputed, keys)
        if not kept or keys == 0:
            self.oldest_key_version = version

    def delivery(self, reason: FinishReason | None, saved_tokens: int = 0) -> Delivery:
        """All closed segments, to leave the slot with; None as reason means cut."""
        return Delivery(
            trajectory_id=self.request.trajectory_id,
            attempt=self.request.attempt,
            segments=tuple(self.closed),
            finish_reason=reason,
            saved_tokens=saved_tokens,
        )

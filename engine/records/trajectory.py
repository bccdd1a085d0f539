"""Segment, trajectory, group, verdict: what an answer is and what was said of it.

Life of a trajectory::

    ISSUED -> DECODING -> CUT -> DECODING -> FINISHED -> JUDGED -> TRAINED | DROPPED(reason)

Length counts sampled tokens over all segments, the stop token included; the stop token carries loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from engine.errors import RecordError
from engine.records.version import PolicyVersion


class FinishReason(StrEnum):
    """Why a trajectory takes no more tokens."""

    stop = "stop"
    length = "length"
    repetition = "repetition"
    aborted = "aborted"


class Outcome(StrEnum):
    """Whether the judge did its work; ``failed`` and ``timeout`` are never reward 0."""

    ok = "ok"
    failed = "failed"
    timeout = "timeout"


class DropReason(StrEnum):
    """Why a trajectory or its tokens left without being trained; the same word is the metric key."""

    no_spread = "no_spread"
    judge_failed = "judge_failed"
    generator_lost = "generator_lost"
    given_up = "given_up"
    poison_prompt = "poison_prompt"
    non_finite = "non_finite"
    rollback = "rollback"
    end_of_run = "end_of_run"


class MaskReason(StrEnum):
    """Why a token of a trained trajectory carries no loss."""

    zero_advantage = "zero_advantage"
    stale = "stale"
    earlier_round = "earlier_round"
    overlong = "overlong"
    not_selected = "not_selected"


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Tokens that joined a trajectory in one go, all under one policy version."""

    token_ids: NDArray[np.int32]
    """[T] token ids."""
    sampled: NDArray[np.bool_]
    """[T] False where the policy did not sample (tool output, templates): no log-prob, loss, length."""
    behaviour_logprob: NDArray[np.float32]
    """[T] nats, under the distribution the token was drawn from; 0 where not sampled."""
    version: PolicyVersion
    """The weights that sampled these tokens, stamped by the generator."""
    temperature: float
    """Temperature of the draw; learner and reference fold in the same one."""
    oldest_key_version: PolicyVersion
    """The oldest weights among the cached keys and values these tokens looked at."""

    def __post_init__(self) -> None:
        size = len(self.token_ids)
        if len(self.sampled) != size or len(self.behaviour_logprob) != size:
            raise RecordError(
                f"segment of {size} tokens has {len(self.sampled)} sampled flags and "
                f"{len(self.behaviour_logprob)} log-probs: give one of each per token"
            )

    @property
    def num_sampled(self) -> int:
        """Tokens that the policy sampled."""
        return int(self.sampled.sum())


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """Ordered segments that answer one prompt."""

    trajectory_id: int
    """From the controller's counter; unique within a run over all its lives."""
    group_id: int
    prompt_id: str
    attempt: int = 0
    """Part of the random key: another attempt draws another stream."""
    segments: tuple[Segment, ...] = ()
    finish_reason: FinishReason | None = None
    """None while unfinished."""
    saved_tokens: int = 0
    """Tokens not decoded because a loop was cut, at most the response budget."""

    @property
    def length(self) -> int:
        """Sampled tokens over all segments, the stop token included."""
        return sum(segment.num_sampled for segment in self.segments)

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """[T] ids over all segments."""
        if not self.segments:
            return np.zeros(0, np.int32)
        return np.concatenate([segment.token_ids for segment in self.segments])

    @property
    def oldest_version(self) -> PolicyVersion | None:
        """The oldest version that sampled a token, None before the first."""
        return min((s.version for s in self.segments), key=lambda v: v.updates, default=None)

    def extended(
        self,
        segments: tuple[Segment, ...],
        finish_reason: FinishReason | None,
        saved_tokens: int = 0,
    ) -> Trajectory:
        """The trajectory with more segments; a finished one takes no more."""
        if self.finish_reason is not None:
            raise RecordError(
                f"trajectory {self.trajectory_id} finished with {self.finish_reason} and cannot grow"
            )
        return replace(
            self,
            segments=self.segments + segments,
            finish_reason=finish_reason,
            saved_tokens=self.saved_tokens + saved_tokens,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said of one trajectory.

    Example:
        >>> Verdict.failed("math", "worker died").outcome.value
        'failed'
    """

    score: float
    """Reward before any length reward; dimensionless, usually 0..1."""
    correct: bool
    """score >= correct_threshold after answer extraction; partial scores are not correct."""
    reason: str
    """One short phrase: why this score."""
    judge: str
    """Name of the judge."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Named components of the score."""
    seconds: float = 0.0
    """Time in the judge."""
    outcome: Outcome = Outcome.ok

    @classmethod
    def failed(cls, judge: str, reason: str, outcome: Outcome = Outcome.failed) -> Verdict:
        """The judge could not do its work; nobody may read this as reward 0."""
        return cls(score=float("nan"), correct=False, reason=reason, judge=judge, outcome=outcome)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The K trajectories of one prompt with their verdicts, sorted by trajectory id."""

    group_id: int
    prompt_id: str
    prompt_tokens: NDArray[np.int32]
    """[T] the rendered prompt, shared by all members."""
    trajectories: tuple[Trajectory, ...]
    verdicts: tuple[Verdict, ...]
    """One for each trajectory, outcome ok."""

    def __post_init__(self) -> None:
        if len(self.trajectories) != len(self.verdicts):
            raise RecordError(
                f"group {self.group_id} has {len(self.trajectories)} trajectories and "
                f"{len(self.verdicts)} verdicts: judge every member once"
            )

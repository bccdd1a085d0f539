"""What passes between replay and a generator: a request to go on, and the tokens that came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.records.manifest import Kept, Manifest
from engine.records.span import Span
from engine.records.trajectory import FinishReason, Segment, Verdict
from engine.records.version import PolicyVersion


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Continue one trajectory, from its first token or from where a cut left it."""

    trajectory_id: int
    attempt: int
    prompt_tokens: NDArray[np.int32]
    """[T] the rendered prompt."""
    generated: NDArray[np.int32]
    """[T] tokens of earlier segments, empty for a new trajectory."""
    max_response_tokens: int
    """Length at which the trajectory ends with ``length``."""
    round_budget_tokens: int | None = None
    """Tokens it may spend before it is cut; None for no cut."""
    temperature: float = 1.0
    """0 means greedy."""


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """Tokens of one trajectory that left its slot: finished, or cut to go on later."""

    trajectory_id: int
    attempt: int
    segments: tuple[Segment, ...]
    finish_reason: FinishReason | None
    """None: cut."""
    saved_tokens: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class GeneratorOrder:
    """What one generator shall do next: take weights, cut, admit, decode, in this order."""

    requests: tuple[Request, ...] = ()
    weights: Manifest | Kept | None = None
    """Another version to stage, verify and swap in between two tokens."""
    cut_all: bool = False
    """Cut every slot into segments: the barrier of a checkpoint."""
    max_steps: int = 8
    """Decode at most this many tokens per slot before answering."""


@dataclass(frozen=True, slots=True, eq=False)
class GeneratorReport:
    """The answer to an order."""

    generator: str
    deliveries: tuple[Delivery, ...]
    version: PolicyVersion
    """The weights it serves now: the acknowledgement."""
    digest: str
    """Digest of those weights as it verified them."""
    refused: str = ""
    """Why offered weights were refused; empty when none were."""
    generated_tokens: int = 0
    """Cumulative count since this incarnation started."""
    tokens_in_slots: int = 0
    """Sampled, not yet delivered."""
    open_requests: int = 0
    """In a slot or waiting for one."""
    swaps_while_decoding: int = 0
    """Cumulative count of swaps that found occupied slots."""
    busy: tuple[tuple[float, float], ...] = ()
    """Intervals of the wall clock (seconds) in which it worked."""
    prefilled_tokens: int = 0
    """Cumulative count of tokens prefilled, by all causes."""
    wake_seconds: float = 0.0
    """Time to take its memory on a shared device again; 0 where it was awake."""
    spans: tuple[Span, ...] = ()
    """What it did in ``busy``; empty without ``run.trace``."""


@dataclass(frozen=True, slots=True, eq=False)
class JudgeReport:
    """The answer to a question for verdicts."""

    verdicts: Mapping[int, Verdict]
    """Trajectory id -> verdict."""
    spans: tuple[Span, ...] = ()
    """What it did; empty without ``run.trace``."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Its counters, by the names of ``engine/metrics.py``."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What replay tells the controller of one delivery: never tokens."""

    trajectory_id: int
    attempt: int
    new_tokens: int
    length: int
    oldest_version: PolicyVersion | None
    finish_reason: FinishReason | None
    num_segments: int
    num_versions: int
    saved_tokens: int = 0

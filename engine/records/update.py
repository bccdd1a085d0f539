"""What a learner says after one update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.records.span import Span
from engine.records.version import PolicyVersion


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """One update: committed or not, and what became of every token it was given."""

    version: PolicyVersion
    """The version after it; unchanged when it was not committed."""
    committed: bool
    """False: every step was non-finite, nothing changed and nothing may be published."""
    carried_tokens: int
    """Tokens that carried loss."""
    masked_tokens: Mapping[str, int]
    """Reason -> tokens of the consumed trajectories that carried none."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    staleness: Mapping[int, int] = field(default_factory=dict)
    """Staleness in versions -> tokens that carried loss."""
    busy: tuple[float, float] = (0.0, 0.0)
    """Interval of the wall clock, seconds."""
    weights_digest: str = ""
    """xxh3 over the fp32 master tensors; empty unless asked for."""
    spans: tuple[Span, ...] = ()
    """What went on in it and in publishing its version; empty without ``run.trace``."""

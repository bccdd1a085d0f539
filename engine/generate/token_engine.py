"""What a sampler asks of an engine that decodes by itself, and what it holds of a request meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from engine.config.schedule import InFlight
from engine.records.trajectory import Segment
from engine.records.version import PolicyVersion
from engine.records.work import Request


@dataclass(frozen=True, slots=True)
class Ask:
    """What an engine is asked to continue."""

    key: str
    """Names it; never used twice."""
    tokens: list[int]
    """Prompt and earlier tokens."""
    limit: int
    """Tokens to sample at most."""
    temperature: float
    seed: int
    """Of its random numbers, 0 or more."""
    salt: str
    """Keys are shared only between requests of the same salt."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What an engine sampled for one request since it was last asked."""

    key: str
    tokens: list[int]
    logprobs: list[float]
    """Under the distribution each token was drawn from, in nats."""
    cached: int
    """Positions of the request whose keys were there already."""
    spans: tuple[tuple[str, int], ...] | None = None
    """Once it has ended: (version as text, tokens sampled under it), in order, for all its tokens."""

    def followed_by(self, later: Arrival) -> Arrival:
        """Both as one."""
        return Arrival(self.key, self.tokens + later.tokens, self.logprobs + later.logprobs, self.cached, later.spans)


class TokenEngine(Protocol):
    """Decodes requests by itself. Whatever takes longer than its deadline raises ActorError."""

    def start(self, asked: Sequence[Ask]) -> None:
        """Take requests in."""

    def receive(self) -> list[Arrival]:
        """Wait until there is something, and take all of it."""

    def stop(self, keys: Sequence[str]) -> list[Arrival]:
        """End requests now; the rest of each, with its spans, also of one that had ended by itself."""

    def serve(self, tensors: Mapping[str, Tensor], version: str, mode: InFlight) -> None:
        """Change the weights, open requests as ``mode`` says. Raises ModelError before anything changes."""

    def sleep(self) -> None:
        """Free the device's memory, weights too; nothing is open."""

    def wake(self) -> None:
        """Take it again; the weights are made up until others are served."""

    def close(self) -> None:
        """End; twice is harmless."""


@dataclass(slots=True)
class Stay:
    """A request while the engine decodes it."""

    request: Request
    key: str
    slot: int
    versions: dict[str, tuple[PolicyVersion, PolicyVersion]]
    """As text -> weights that were served during the stay, and the oldest key that their tokens may look at."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    looping: bool = False
    heard: bool = False
    """Something came of it."""

    @property
    def length(self) -> int:
        """Response tokens so far, those of earlier stays included."""
        return len(self.request.generated) + len(self.tokens)

    @property
    def positions(self) -> int:
        """Prompt and response tokens so far."""
        return len(self.request.prompt_tokens) + self.length

    def segments(self, spans: Sequence[tuple[str, int]]) -> Iterator[Segment]:
        """The tokens of this stay, split where the engine changed its version.

        Args:
            spans: (version as text, tokens), in order; they may reach beyond the tokens that were kept.
        """
        start = 0
        for name, count in spans:
            stop = min(start + count, len(self.tokens))
            if stop > start:
                version, oldest = self.versions[name]
                yield Segment(
                    token_ids=np.array(self.tokens[start:stop], np.int32),
                    sampled=np.ones(stop - start, bool),
                    behaviour_logprob=np.array(self.logprobs[start:stop], np.float32),
                    version=version,
                    temperature=self.request.temperature,
                    oldest_key_version=oldest,
                )
            start = stop
        assert start == len(self.tokens), f"{self.key}: versions of {start} tokens, but {len(self.tokens)} came"

    def swapped(self, version: PolicyVersion, kept: bool) -> None:
        """Go on under other weights, over the keys that are there or over new ones."""
        oldest = next(reversed(self.versions.values()))[1]
        self.versions[str(version)] = (version, oldest if kept else version)

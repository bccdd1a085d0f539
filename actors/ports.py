"""The questions each actor answers, over records alone.

Everything else about an actor - where it lives, how a call reaches it, what happens when it dies - is
``actors/cluster.py`` and ``actors/supervisor.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.records.event import Judged
from engine.records.manifest import Manifest
from engine.records.prompt import Prompt
from engine.records.span import Span
from engine.records.trajectory import Group, Trajectory, Verdict
from engine.records.update import UpdateReport
from engine.records.version import PolicyVersion
from engine.records.work import Delivery, GeneratorOrder, GeneratorReport, JudgeReport, Progress, Request


class GeneratorPort(Protocol):
    """Samples."""

    def advance(self, order: GeneratorOrder) -> GeneratorReport:
        """Take weights, cut, admit, decode, in this order; hand over what left its slot."""
        ...

    def sleep(self) -> tuple[Span, ...]:
        """Leave a shared device until the next order; what was done for it."""
        ...


class ReplayPort(Protocol):
    """Holds trajectories between issue and training."""

    def admit(self, group_id: int, prompt: Prompt, prompt_tokens: NDArray[np.int32],
              trajectory_ids: Sequence[int]) -> None:
        """Open a group."""
        ...

    def checkout(self, generator: str, trajectory_ids: Sequence[int]) -> tuple[Request, ...]:
        """Lease trajectories to a generator."""
        ...

    def deliver(self, report: GeneratorReport) -> tuple[Progress, ...]:
        """Keep what a generator made."""
        ...

    def to_judge(self, trajectory_ids: Sequence[int]) -> tuple[tuple[Prompt, Trajectory], ...]:
        """Finished trajectories beside their prompts."""
        ...

    def judged(self, verdicts: Mapping[int, Verdict]) -> Judged:
        """Keep verdicts."""
        ...

    def take(self, group_ids: Sequence[int], updates: int) -> tuple[Group, ...]:
        """Complete groups leave for an update."""
        ...

    def forget(self, group_id: int) -> dict[int, int]:
        """Drop a group."""
        ...


class JudgePort(Protocol):
    """Judges."""

    def judge(self, items: Sequence[tuple[Prompt, Trajectory]]) -> JudgeReport:
        """Verdicts by trajectory id."""
        ...

    def texts(self, trajectories: Sequence[Trajectory]) -> list[str]:
        """Responses as text."""
        ...


class LearnerPort(Protocol):
    """Learns and publishes."""

    def meet(self) -> str:
        """Where the ranks of several learners meet: host:port, of rank 0."""
        ...

    def join(self, address: str) -> None:
        """Meet the other ranks there, before any other question."""
        ...

    def publish(self, refused: PolicyVersion | None = None) -> Manifest | None:
        """Write the current weights into the channel; None from every rank but the first, and where others than
        those that were refused are current.
        """
        ...

    def update(self, groups: Sequence[Group]) -> tuple[UpdateReport, Manifest | None]:
        """One update, and the manifest of what it committed."""
        ...

    def record(self, batch: int, groups: Sequence[Group]) -> int:
        """Write down a batch instead of learning from it."""
        ...

    def study(self, path: Path) -> tuple[list[tuple[int, str, dict[int, int]]], UpdateReport, Manifest | None]:
        """One update on recorded groups; also their ids, prompts and members with lengths."""
        ...

    def logprob_gap(self, items: Sequence[tuple[NDArray[np.int32], Delivery]]) -> tuple[float, float]:
        """Mean and largest absolute gap to behaviour log-probs, nats: the canary."""
        ...

    def write_state(self, path: Path) -> None:
        """Write everything of a checkpoint that belongs to the learner."""
        ...

    def load_state(self, path: Path, lineage: int | None = None) -> None:
        """The inverse, under a new lineage; None: the next one."""
        ...

    def save_model(self, folder: Path) -> None:
        """Write a folder that transformers loads."""
        ...

    def digest(self) -> str:
        """xxh3 over the fp32 master tensors."""
        ...


class LongLived(Protocol):
    """What every actor answers."""

    def metrics(self) -> dict[str, float]:
        """Counters and gauges."""
        ...

    def close(self) -> None:
        """Free everything; twice is harmless."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What survives a restart."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse."""
        ...

"""The replay actor: shell of the replay buffer."""

from __future__ import annotations

from engine.config.run import RunConfig
from engine.faults import reach
from engine.records.work import GeneratorReport, Progress
from engine.replay.buffer import ReplayBuffer


class Replay(ReplayBuffer):
    """The buffer as an actor; every question is the buffer's own."""

    def __init__(self, config: RunConfig) -> None:
        """An empty buffer for a run."""
        super().__init__(config.rollout, config.reward, config.schedule.cut_tokens)
        reach("replay.start")

    def deliver(self, report: GeneratorReport) -> tuple[Progress, ...]:
        """Take in what a generator made."""
        reach("replay.deliver")
        return super().deliver(report)

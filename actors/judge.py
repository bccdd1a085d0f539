"""The judge: shell of ``engine/rewards``; turns trajectories into verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.config.run import RunConfig
from engine.faults import reach
from engine.models.tokenizer import PolicyTokenizer
from engine.records.prompt import Prompt
from engine.records.trajectory import Trajectory
from engine.records.work import JudgeReport
from engine.rewards.judge import Rewarder
from engine.trace import recording, span


class Judge:
    """Decodes responses and asks the judge of their kind."""

    def __init__(self, config: RunConfig, folder: str) -> None:
        """Build the rewarder and its pool.

        Args:
            config: of the run.
            folder: model folder, for its tokenizer.
        """
        self._tokenizer = PolicyTokenizer.from_folder(Path(folder))
        self._traced = config.run.trace
        self._rewarder = Rewarder(config.reward, config.rollout.repetition.penalty)
        reach("judge.start")

    def judge(self, items: Sequence[tuple[Prompt, Trajectory]]) -> JudgeReport:
        """Verdicts by trajectory id; a judge that failed says so in its outcome."""
        with recording(self._traced) as spans, span("judge", items=len(items)):
            questions = [
                (prompt, self._tokenizer.decode(trajectory.token_ids), trajectory.finish_reason)
                for prompt, trajectory in items
            ]
            reach("judge.judge")
            verdicts = self._rewarder.judge(questions)
        found = {t.trajectory_id: verdict for (_, t), verdict in zip(items, verdicts, strict=True)}
        return JudgeReport(found, tuple(spans), self._rewarder.metrics())

    def texts(self, trajectories: Sequence[Trajectory]) -> list[str]:
        """Responses as text."""
        return [self._tokenizer.decode(trajectory.token_ids) for trajectory in trajectories]

    def metrics(self) -> dict[str, float]:
        """The rewarder's counters."""
        return self._rewarder.metrics()

    def state_dict(self) -> dict[str, Any]:
        """Counters of the rewarder."""
        return self._rewarder.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._rewarder.load_state_dict(state)

    def close(self) -> None:
        """End the worker processes."""
        self._rewarder.close()

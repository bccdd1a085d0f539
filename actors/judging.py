"""The driver's side of the judges: finished trajectories out, verdicts in."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.records import event as ev
from engine.records.prompt import Prompt
from engine.records.trajectory import Outcome, Trajectory
from engine.records.work import JudgeReport

if TYPE_CHECKING:
    from actors.driver import Driver


def pieces(trajectory: Trajectory, decode: Callable[[NDArray[np.int32]], str]) -> list[str]:
    """The text of a response, segment by segment; joined, that of the whole.

    A character whose bytes lie in two segments belongs to the later one.
    """
    whole, cuts, end = decode(trajectory.token_ids), [0], 0
    for segment in trajectory.segments[:-1]:
        end += len(segment.token_ids)
        both = zip(whole, decode(trajectory.token_ids[:end]), strict=False)
        cuts.append(max(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both)), cuts[-1]))
    return [whole[start:stop] for start, stop in pairwise([*cuts, len(whole)])]


class Judging:
    """Judgements under way, and the verdicts of groups that are not trained yet."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._under_way: set[int] = set()
        self.correct: dict[int, bool] = {}
        """Trajectory id -> correct, until its group is trained or dropped."""

    def judge(self, command: ev.Judge) -> None:
        """Send finished trajectories to the judge; the driver sees them only in passing."""
        driver = self._driver
        self._under_way.update(command.trajectory_ids)
        items = driver.replay("to_judge", command.trajectory_ids)
        driver.later(lambda report: self._judged(items, report), driver.supervisor.judge, "judge", items)

    def _judged(self, items: tuple[tuple[Prompt, Trajectory], ...], report: JudgeReport) -> None:
        driver, verdicts = self._driver, report.verdicts
        # Groups may have been dropped meanwhile, and nobody asks for their verdicts any more.
        awaited = self._under_way & verdicts.keys()
        self._under_way -= awaited
        for trajectory_id, verdict in verdicts.items():
            if trajectory_id in awaited and verdict.outcome is Outcome.ok:
                self.correct[trajectory_id] = verdict.correct
        driver.observer.judged([
            (prompt, trajectory, pieces(trajectory, driver.tokenizer.decode), verdicts[trajectory.trajectory_id])
            for prompt, trajectory in items
        ], report.metrics)
        driver.feed(driver.replay("judged", verdicts))

    def again(self) -> None:
        """The judge died: ask its successor the same."""
        if self._under_way:
            self.judge(ev.Judge(tuple(sorted(self._under_way))))

    def forget(self, trajectory_ids: tuple[int, ...]) -> list[bool]:
        """Take out what is known of these; those that were judged."""
        self._under_way.difference_update(trajectory_ids)
        found: list[Any] = [self.correct.pop(key, None) for key in trajectory_ids]
        return [one for one in found if one is not None]

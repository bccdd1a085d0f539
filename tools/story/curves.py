"""``metrics.jsonl`` as curves against updates and against seconds of training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import RunFolderError

Line = Mapping[str, Any]


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Whole lines of a ``.jsonl`` file, none where there is none; a torn last line, as a kill leaves it, is left out.

    Raises:
        RunFolderError: a line before the last is damaged; the message says which.
    """
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8", errors="replace")
    rows = []
    # Only "\n" ends a line: texts hold U+2028 and the like as they are.
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RunFolderError(f"{file} is damaged in line {number} ({error.msg}): restore the file") from error
    return rows


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a curve."""

    update: int
    seconds: float
    """Of training: 0 when the first update could begin."""
    value: float


class Curves:
    """The lines of one run.

    Example:
        >>> curves = Curves([{"update": 0, "seconds": 5.0}, {"update": 1, "seconds": 7.5, "learn/loss": 0.5}])
        >>> curves["learn/loss"]
        [Point(update=1, seconds=2.5, value=0.5)]
    """

    def __init__(self, lines: Sequence[Line]) -> None:
        """Lines as they stand in the file."""
        self.lines = lines
        # The evaluation of version 0 is written just before training begins.
        before = [line["seconds"] for line in lines if line["update"] == 0]
        self._zero = before[-1] if before else min((_begin(line) for line in lines), default=0.0)

    def __getitem__(self, name: str) -> list[Point]:
        """The finite values of one metric."""
        found = [(line["update"], line["seconds"] - self._zero, line.get(name)) for line in self.lines]
        return [Point(update, max(at, 0.0), value) for update, at, value in found
                if value is not None and math.isfinite(value)]

    def at_commit(self, name: str) -> list[Point]:
        """The same at the time when the version was committed, not when its evaluation ended; by update.

        Versions may be evaluated long after, when training is over.
        """
        commits = {point.update: point.seconds for point in self["schedule/update_seconds"]}
        points = [Point(point.update, commits.get(point.update, 0.0 if point.update == 0 else point.seconds),
                        point.value) for point in self[name]]
        return sorted(points, key=lambda point: point.update)

    @property
    def updates(self) -> int:
        """Committed updates so far."""
        return max((line["update"] for line in self.lines), default=0)

    @property
    def seconds(self) -> float:
        """Training time up to the last update."""
        return max((point.seconds for point in self["schedule/update_seconds"]), default=0.0)

    def total(self, names: Iterable[str]) -> float:
        """Sum of metrics over all updates."""
        return sum(point.value for name in names for point in self[name])

    def mean(self, name: str) -> float | None:
        """Mean over updates; None where it was never written."""
        values = [point.value for point in self[name]]
        return sum(values) / len(values) if values else None

    def named(self, prefix: str) -> list[str]:
        """Metrics that begin so, in the order in which they appeared."""
        return list(dict.fromkeys(name for line in self.lines for name in line if name.startswith(prefix)))


def _begin(line: Line) -> float:
    return float(line["seconds"]) - float(line.get("schedule/update_seconds") or 0.0)


def first_reach(points: Sequence[tuple[float, float]], target: float) -> float | None:
    """Where a curve (x, y) first reaches ``target``, on the straight line between two points; None: never.

    Example:
        >>> first_reach([(0, 0.2), (10, 0.6)], 0.5)
        7.5
    """
    before: tuple[float, float] | None = None
    for x, y in points:
        if y >= target:
            if before is None or y == before[1]:
                return x
            return before[0] + (x - before[0]) * (target - before[1]) / (y - before[1])
        before = (x, y)
    return None


def bracket(points: Sequence[tuple[float, float]], target: float) -> tuple[float, float] | None:
    """The points (x, y) between which :func:`first_reach` puts ``target``, by x; twice the first one if it is there.

    Example:
        >>> bracket([(0, 0.2), (10, 0.6)], 0.5)
        (0, 10)
    """
    for i, (x, y) in enumerate(points):
        if y >= target:
            return points[max(i - 1, 0)][0], x
    return None

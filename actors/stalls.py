"""A cluster under watch: remembers who was asked what and since when, and says so when an answer is late.

A wait has two thresholds. Past ``cluster.stall_warning_s`` without a word from its actor it is a stall: one
sentence, and a picture of every queue and lease in ``stalls/`` of the run folder. Past
``cluster.call_deadline_s`` the same again, just before whoever waits gives the actor up.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actors.cluster import Cluster, Pending
from engine.run_folder import write_atomically

SLICE_S = 1.0
"""A long wait is cut into such pieces, so that the status stays fresh in it."""
MOST_FILES = 200
FORMAT = "%H:%M:%S UTC"


@dataclass(slots=True)
class Asked:
    """A question that is out."""

    pending: Pending
    since: float
    """Seconds of the wall clock."""
    carries: tuple[Pending, ...]
    """Answers of others that it needs first."""
    warned: str = ""
    """The last threshold it passed."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Seconds without a word from an actor; infinite where all actors share this process, and none can stall alone."""

    warning_s: float = math.inf
    deadline_s: float = math.inf
    start_s: float = 0.0
    """In place of a smaller ``warning_s`` for who has answered nothing yet: it is being started."""


def clock_time(seconds: float) -> str:
    """A moment of the wall clock as a person reads it."""
    return datetime.fromtimestamp(seconds, UTC).strftime(FORMAT)


def sentence(actor: str, method: str, since: float, last: tuple[float, str] | None, now: float) -> str:
    """What is waited for, whose it is, since when, and the last sign of progress.

    Example:
        >>> sentence("learner", "update", 0.0, (0.0, "publish"), 90.0)
        'learner has not answered update for 90 s, asked at 00:00:00 UTC; its last answer, to publish, came 90 s ago'
    """
    text = f"{actor} has not answered {method} for {now - since:.0f} s, asked at {clock_time(since)}"
    if last is None:
        return f"{text}; it has answered nothing yet"
    return f"{text}; its last answer, to {last[1]}, came {now - last[0]:.0f} s ago"


class WatchedCluster:
    """Any cluster, with every question on record."""

    def __init__(self, inner: Cluster, thresholds: Thresholds, folder: Path, say: Callable[[str], None],
                 clock: Callable[[], float] = time.time) -> None:
        """Watch over a cluster.

        Args:
            inner: the cluster that does the work.
            thresholds: when a wait is a stall.
            folder: for pictures of stalls, made with the first.
            say: shows a sentence to whoever watches the run.
            clock: seconds of the wall clock.
        """
        self._inner = inner
        self._thresholds = thresholds
        self._folder = folder
        self._say = say
        self._clock = clock
        self._asked: dict[Pending, Asked] = {}
        self.answered: dict[str, tuple[float, str]] = {}
        """Actor -> when it last answered, and what."""
        self.started: dict[str, float] = {}
        """Living actor -> when it was started."""
        self.picture: Callable[[], dict[str, Any]] = dict
        """Every queue and lease, as plain data; set once there is a driver."""
        self.refresh: Callable[[], None] = lambda: None
        """Called at every wait, at least once in ``SLICE_S``."""

    # ---- the cluster ---------------------------------------------------------------------------

    def reserve(self, actors: Sequence[str]) -> None:
        """Find places for all actors of a run."""
        self._inner.reserve(actors)

    def start(self, name: str, factory: Callable[..., Any], arguments: dict[str, Any], *,
              threads: int = 1) -> None:
        """Make an actor in its place."""
        self._inner.start(name, factory, arguments, threads=threads)
        self.started[name] = self._clock()

    def look(self, name: str, path: Path) -> tuple[str, bool]:
        """The machine that an actor lives on, and whether this path exists there."""
        return self._inner.look(name, path)

    def call(self, name: str, method: str, *arguments: Any) -> Pending:
        """Ask."""
        pending = self._inner.call(name, method, *arguments)
        carries = tuple(one for one in arguments if isinstance(one, Pending))
        self._asked[pending] = Asked(pending, self._clock(), carries)
        return pending

    def wait(self, pending: Sequence[Pending], timeout_s: float) -> Pending | None:
        """The first that is done, or None when the time is over."""
        left = timeout_s
        while True:
            self.refresh()
            done = self._inner.wait(pending, min(left, SLICE_S))
            left -= SLICE_S
            if done is not None or left <= 0.0:
                self._look()
                return done
            self._look()

    def result(self, pending: Pending) -> Any:
        """Of a call that is done."""
        self._forget(pending)
        value = self._inner.result(pending)
        self.answered[pending.actor] = (self._clock(), pending.method)
        return value

    def kill(self, name: str) -> None:
        """End an actor at once."""
        for one in [asked for asked in self._asked.values() if asked.pending.actor == name]:
            self._forget(one.pending)
        self.started.pop(name, None)
        self.answered.pop(name, None)
        self._inner.kill(name)

    def close(self) -> None:
        """End everything that was started."""
        self._inner.close()

    def _forget(self, pending: Pending) -> None:
        asked = self._asked.pop(pending, None)
        for one in () if asked is None else asked.carries:
            self._forget(one)

    # ---- the watch -----------------------------------------------------------------------------

    def waits(self) -> list[dict[str, Any]]:
        """Open questions, oldest first: actor, method, since when (wall clock, seconds)."""
        return [{"actor": one.pending.actor, "method": one.pending.method, "since": one.since}
                for one in self._asked.values()]

    def _look(self) -> None:
        if math.isinf(self._thresholds.warning_s):
            return
        now = self._clock()
        for asked in list(self._asked.values()):
            passed = self._passed(asked, now)
            if passed and passed != asked.warned and not self._excused(asked):
                asked.warned = passed
                self._report(asked, passed, now)

    def _passed(self, asked: Asked, now: float) -> str:
        if now - asked.since > self._thresholds.deadline_s:
            return "deadline"
        # Who answered others meanwhile works through its queue.
        last, _ = self.answered.get(asked.pending.actor, (asked.since, ""))
        limit, starts = self._thresholds.warning_s, asked.pending.actor not in self.answered
        limit = max(limit, self._thresholds.start_s) if starts else limit
        return "warning" if now - max(last, asked.since) > limit else ""

    def _excused(self, asked: Asked) -> bool:
        """It waits for another actor, or for us to take its answer, or in the queue behind an older question."""
        queue = [one.pending for one in self._asked.values() if one.pending.actor == asked.pending.actor]
        at_work = next((one for one in queue if self._inner.wait([one], 0.0) is None), None)
        return at_work is not asked.pending or any(self._inner.wait([one], 0.0) is None for one in asked.carries)

    def _report(self, asked: Asked, passed: str, now: float) -> None:
        actor, method = asked.pending.actor, asked.pending.method
        text = sentence(actor, method, asked.since, self.answered.get(actor), now)
        self._say(f"stall: {text}")
        self._folder.mkdir(exist_ok=True)
        number = len(list(self._folder.iterdir()))
        if number >= MOST_FILES:
            return
        body = {"sentence": text, "passed": passed, "actor": actor, "method": method, "at": now,
                "since": asked.since, "waits": self.waits(), **self.picture()}
        file = self._folder / f"{number:03d}-{actor}-{method}-{passed}.json"
        write_atomically(file, (json.dumps(body, indent=1) + "\n").encode())

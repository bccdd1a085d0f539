"""What a run is doing, in ``status.json`` of its folder: for whoever looks, without a port and without a question.

The driver writes it at most once a second, atomically, whenever it waits: so it is fresh while actors are
stalled too. ``perilune top`` and ``perilune doctor`` read it; what it says is exported through Ray as well.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.roster import FINISHED, FLYING, JUDGED, READY, SPENT
from actors.stalls import WatchedCluster
from engine.errors import RunFolderError

if TYPE_CHECKING:
    from actors.driver import Driver

FILE = "status.json"
RUNNING, COMPLETE, STOPPED, CUT_OFF = "running", "complete", "stopped", "cut off"
EVERY_S = 1.0
RATE_S = 10.0
"""Tokens per second are a mean over so long: they arrive with answers, and not at every look."""
STATUSES = (READY, FLYING, SPENT, FINISHED, JUDGED)


def queues(driver: Driver) -> dict[str, int]:
    """How much waits where: trajectories by state, groups complete and at the learner."""
    roster = driver.controller.roster
    counts = Counter(member.status for group in roster.groups.values() for member in group.members)
    return {
        **{f"{status}_trajectories": counts[status] for status in STATUSES},
        "outstanding_groups": len(roster.groups) - len(roster.training),
        "complete_groups": len(roster.complete), "training_groups": len(roster.training),
    }


def picture(driver: Driver) -> dict[str, Any]:
    """Every queue and lease as plain data, for the snapshot of a stall."""
    roster, seats = driver.controller.roster, driver.controller.seats
    return {
        "version": str(driver.controller.version), "queues": queues(driver),
        "generators": {
            name: {"serves": seat.version, "holds": seat.open_trajectories, "cut_asked": seat.cut_asked,
                   "lease_left_s": None if seat.lease_until is None else seat.lease_until - seats.watched_s}
            for name, seat in seats.by_name.items()
        },
        "mailboxes": driver.generation.picture(),
        "groups": [
            {"group": group.group_id, "prompt": group.prompt_id, "oldest_version": group.oldest,
             "doomed": group.doomed, "at_learner": group.group_id in roster.training,
             "members": [[m.trajectory_id, m.status, m.holder, m.length] for m in group.members]}
            for group in roster.groups.values()
        ],
        "ledger": driver.ledger.counts(),
    }


def read_status(folder: Path) -> dict[str, Any]:
    """What a run last said of itself; ``state`` is cut off where it says running and no process runs it.

    Raises:
        RunFolderError: it said nothing.
    """
    file = folder / FILE
    try:
        status: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        raise RunFolderError(f"{file} is missing: {folder} is not the folder of a run that has begun") from None
    except ValueError as error:
        raise RunFolderError(f"{file} is damaged ({error}): wait for the next, or read metrics.jsonl") from error
    if status["state"] == RUNNING and not is_live(folder):
        status["state"] = CUT_OFF
    return status


def is_live(folder: Path) -> bool:
    """Whether a process runs in this folder: it holds the folder's lock, however busy it is."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class Status:
    """Keeps ``status.json`` fresh while a run lives."""

    def __init__(self, path: Path, cluster: WatchedCluster, total: int, export: Callable[[dict[str, Any]], None],
                 clock: Callable[[], float] = time.time) -> None:
        """Nothing is written before the first wait.

        Args:
            path: of the file.
            cluster: whose actors and open questions are shown.
            total: updates of the run.
            export: takes what was written, for other displays.
            clock: seconds of the wall clock.
        """
        self._path = path
        self.cluster = cluster
        self._total = total
        self._export = export
        self._clock = clock
        self._due = 0.0
        self._counted: deque[tuple[float, int]] = deque()
        self._began = clock()
        self.driver: Driver | None = None

    def refresh(self) -> None:
        """Write, unless the last time is less than a second ago."""
        if self._clock() >= self._due:
            self.write(RUNNING)

    def write(self, state: str) -> None:
        """Write now; ``state`` is running, or how the run ended."""
        now = self._clock()
        self._due = now + EVERY_S
        body: dict[str, Any] = {"state": state, "at": now, "began": self._began, "pid": os.getpid(),
                                "total_updates": self._total, "actors": self._actors(now),
                                "waits": self.cluster.waits()}
        if self.driver is not None:
            body |= self._progress(self.driver, now)
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            temporary.write_text(json.dumps(body) + "\n")
            temporary.replace(self._path)
        except OSError as error:
            raise RunFolderError(f"{self._path} cannot be written ({error}): free the disk, resume") from error
        self._export(body)

    def _actors(self, now: float) -> dict[str, dict[str, Any]]:
        """Actor -> what it does, since when, and its last answer with its age in seconds (None: none yet)."""
        waits, rows = self.cluster.waits(), {}
        for name, started in self.cluster.started.items():
            answered = self.cluster.answered.get(name)
            asked = next((wait for wait in waits if wait["actor"] == name), None)
            last = started if answered is None else answered[0]
            # Behind an older question it was not at work on this one since it was asked.
            since = last if asked is None else max(asked["since"], last)
            rows[name] = {"state": "idle" if asked is None else asked["method"], "since": since,
                          "silent_s": None if answered is None else now - last,
                          "last_answer": "" if answered is None else answered[1]}
        return rows

    def _progress(self, driver: Driver, now: float) -> dict[str, Any]:
        observer, controller = driver.observer, driver.controller
        tokens = observer.totals["generated_tokens"]
        while len(self._counted) > 1 and self._counted[0][0] < now - RATE_S:
            self._counted.popleft()
        self._counted.append((now, tokens))
        before, counted = self._counted[0]
        ages = controller.roster.ages
        return {
            "updates": controller.version.updates, "version": str(controller.version), "queues": queues(driver),
            "serving": {name: seat.version for name, seat in controller.seats.by_name.items()},
            "tokens_per_second": (tokens - counted) / max(now - before, 1e-9),
            "oldest_outstanding_versions": controller.version.updates - min(ages, default=controller.version.updates),
            "rewards": list(observer.rewards), "latest": dict(observer.latest),
            "restarts": observer.totals["restarts"], "generated_tokens": tokens,
        }

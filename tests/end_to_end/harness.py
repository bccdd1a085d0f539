"""Runs of a very small policy, in this process or as a process tree of their own that can be hurt."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from actors.launch import compose
from actors.run import run
from engine.faults import FAULT, FOLDER

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 300.0
MARK = "PERILUNE_TEST"
PR_SET_PDEATHSIG = 1
ROLES = ("generator", "evaluator", "learner", "judge", "replay")
# A length reward gives nearly every group a spread, and the rate is high: what is learned shows in what
# is sampled next.
LEARNS = (
    "experiment=smoke", "run.quiet=true", "model.warmup.steps=0", "reward.length.weight=0.5",
    "learning.optimiser.learning_rate=0.003", "evaluation.every=0", "prompts.num_heldout=4",
    "canary.prompts=2",
)
RAY = ("cluster=ray", "cluster.dashboard=false", "cluster.object_store_mib=80")
ASYNC = ("schedule=async", "schedule.max_staleness=2", "schedule.round_budget_tokens=6")


def train(folder: Path, *overrides: str) -> dict[str, Any]:
    """One run in this process; its summary."""
    config, text = compose([*LEARNS, f"run.dir={folder}", *overrides])
    return run(config, text)


def wait_until(true: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S,
               why: Callable[[], Any] = str) -> Any:
    """The first truthy answer; only for what another process does and nobody can tell us of."""
    deadline = time.monotonic() + deadline_s
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {deadline_s:.0f} s: {what} {why()}"
        time.sleep(0.02)
    return found


class Life:
    """A run as ``perilune train`` starts it, with everything that it starts."""

    def __init__(self, folder: Path, *overrides: str, fault: str = "") -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        name = xxhash.xxh3_64_hexdigest(str(folder).encode())[:8]
        self._private = f"perilune-{name}-"
        self.faults = folder.with_name(f"{folder.name}-faults")
        self.faults.mkdir(exist_ok=True)
        self._log = folder.with_name(f"{folder.name}-{self.mark[:4]}.log")
        environment = {**os.environ, MARK: self.mark, FOLDER: str(self.faults)}
        # A fault that only continues who runs already tells which process an actor is.
        starts = [f"{role}.start:1:CONT" for role in ROLES]
        environment[FAULT] = ",".join([*starts, *([fault] if fault else [])])
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tools.train", *LEARNS, f"run.dir={folder}", *overrides],
                cwd=ROOT, env=environment, start_new_session=True, stdout=log, stderr=log,
                preexec_fn=_die_with_parent,
            )

    def says(self) -> str:
        """What it printed so far."""
        return self._log.read_text(errors="replace")

    def processes(self) -> dict[int, str]:
        """Process id -> command of everything alive that this life started, itself included."""
        entries = [entry for entry in Path("/proc").glob("[0-9]*") if self._owns(entry)]
        return {int(entry.name): _read(entry / "cmdline").replace("\0", " ").strip() for entry in entries}

    def _owns(self, process: Path) -> bool:
        """By the mark in its environment; Ray writes over that of its own, but they keep logs in its folder."""
        if f"{MARK}={self.mark}" in _read(process / "environ"):
            return True
        try:
            return any(self._private in str(file.readlink()) for file in (process / "fd").iterdir())
        except OSError:  # it ended, or closed a file, while we looked
            return False

    def actor(self, role: str) -> int:
        """Process id of the first actor of a role; the driver is ``driver``."""
        return self.process.pid if role == "driver" else self.reached(f"{role}.start")

    def reached(self, point: str) -> int:
        """Wait until a fault fired; the process it hit."""
        mark = self.faults / point

        def fired() -> str:
            assert self.process.poll() is None or mark.exists(), self.says()
            return mark.read_text() if mark.exists() else ""

        return int(wait_until(fired, f"{point} is reached"))

    def stopped_at(self, point: str) -> int:
        """Wait until a fault has stopped its process; that process."""
        pid = self.reached(point)
        stat = Path(f"/proc/{pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", f"{pid} stops")
        return pid

    def ended(self, deadline_s: float = DEADLINE_S) -> int:
        """Wait for the end; the exit status."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {deadline_s:.0f} s:\n{self.says()}") from None

    def nothing_left(self, deadline_s: float = 20.0) -> None:
        """Wait until no process, no shared memory and no folder of this life is left."""
        self.no_process_left(deadline_s)
        assert not list(Path("/dev/shm").glob(f"{self._private}*"))

    def no_process_left(self, deadline_s: float = 20.0) -> None:
        """The same, but the memory of a run whose driver was killed waits for the next run to free it."""
        wait_until(lambda: not self.processes(), "every process is gone", deadline_s, self.processes)
        wait_until(lambda: not list(Path("/tmp").glob(f"{self._private}*")), "no folder", deadline_s)

    def close(self) -> None:
        """End whatever a failed test left."""
        for pid in self.processes():
            with_signal(pid, signal.SIGKILL)
        self.process.wait(10)
        shutil.rmtree(self.faults, ignore_errors=True)


def _die_with_parent() -> None:
    """A test session that is killed takes its runs along; their watchdogs see to the rest."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def with_signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to whoever may be gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return

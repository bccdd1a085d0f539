"""One cell of the matrix: the run of an arm and a seed, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.errors import RunFolderError
from engine.run_folder import write_atomically
from tools.ablation.foreign import ForeignWork
from tools.ablation.matching import MatchedArm, different, flat
from tools.story.folder import reached_end

_ROOT = Path(__file__).resolve().parents[2]
_LAST_WORDS = 12
_LOOK_S = 1.0
"""Between two looks at who uses the machine."""
GRACE_S = 60.0
"""Seconds that a run which is asked to end may take to write its checkpoint."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Where a run lives, and with which options."""

    arm: MatchedArm
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"{self.arm.name} seed {self.seed}"

    @property
    def log(self) -> Path:
        """What the run prints, over all its tries."""
        return self.folder.with_name(self.folder.name + ".log")

    @property
    def tries(self) -> list[dict[str, Any]]:
        """How what lies there was made: :class:`Ended`, machine, versions and command of each try, oldest first."""
        file = self._tries_file
        tries: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
        return tries

    def write_tries(self, tries: Sequence[Mapping[str, Any]]) -> None:
        """So that later calls, which take the run over, can tell of it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._tries_file, (json.dumps(tries, indent=1) + "\n").encode())

    @property
    def _tries_file(self) -> Path:
        # Beside the folder, as the log: a run that failed early has no folder, and a run's folder is the run's own.
        return self.folder.with_name(self.folder.name + ".json")

    @property
    def summary(self) -> dict[str, Any] | None:
        """That of a run that reached its end; None before that."""
        file = self.folder / "summary.json"
        if not file.exists():
            return None
        summary: dict[str, Any] = json.loads(file.read_text())
        learning = self.arm.config.learning
        return summary if reached_end(summary, learning.updates, learning.max_seconds) else None

    def require_same_options(self) -> None:
        """What lies in the folder was made with these options, or nothing lies there.

        Raises:
            RunFolderError: it was made with others.
        """
        file = self.folder / "config.yaml"
        keys = different(flat(file.read_text()), self.arm.flat) if file.exists() else []
        if keys:
            raise RunFolderError(f"{self.folder} was made with other options ({', '.join(keys)}): choose another dir=, "
                                 "or remove that folder")

    @property
    def last_words(self) -> str:
        """The end of what the run printed."""
        if not self.log.exists():
            return ""
        lines = self.log.read_text(errors="replace").replace("\r", "\n").splitlines()
        return "\n".join([line for line in lines if line.strip()][-_LAST_WORDS:])


@dataclass(frozen=True, slots=True)
class Ended:
    """How a try to run a cell ended."""

    failed: str
    """Empty: the run is complete; else in a few words why it is not."""
    seconds: float
    foreign: float | None = None
    """Share of all cores (0..1) that others than this ablation used; None: not known."""
    begun: str = ""
    """Date and time, UTC."""


def run_cell(cell: Cell, deadline_s: float, started: Callable[[subprocess.Popen[bytes]], None]) -> Ended:
    """Run, or take up again, until its end or the deadline; the failure of a run is a value.

    Args:
        cell: what to run.
        deadline_s: seconds; afterwards the run is asked to end, and killed after ``GRACE_S`` more.
        started: hears of the process.
    """
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-m", "tools.train", *cell.arm.overrides, f"seed={cell.seed}",
               f"run.dir={cell.folder}", "run.exists=resume"]
    began, begun, work = time.monotonic(), f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}", ForeignWork()
    with cell.log.open("ab") as log:
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log, start_new_session=True)
        started(process)
        code = _wait(process, deadline_s, work.look)
    failed = "" if code == 0 else f"not done in {deadline_s:.0f} s" if code is None else f"exit code {code}"
    if not failed and cell.summary is None:
        failed = "it ended before its last update"
    # On a cluster that was there before, actors descend from others.
    share = work.share if cell.arm.config.cluster.address == "local" else None
    return Ended(failed, time.monotonic() - began, share, begun)


def _wait(process: subprocess.Popen[bytes], deadline_s: float, look: Callable[[], None]) -> int | None:
    """The exit code; None where the deadline ended it. ``look`` is called about once a second while it lives."""
    until = time.monotonic() + deadline_s
    while (left := until - time.monotonic()) > 0:
        try:
            return process.wait(min(left, _LOOK_S))
        except subprocess.TimeoutExpired:
            look()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # nobody has waited for it, so the group is still its own
        process.wait(GRACE_S)
    return None

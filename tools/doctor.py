"""Say what a run waits for, or what it waited for when it ended: ``perilune doctor RUNDIR``."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.stalls import clock_time, sentence
from actors.status import RUNNING, read_status
from engine.errors import PeriluneError

SILENT_S = 10.0
"""Age at which the status of a live run tells of its driver."""
PATIENCE_S = 5.0
"""Waits below this are the ordinary course of things."""
SHOWN_STALLS = 5


def headline(status: Mapping[str, Any], now: float) -> str:
    """State, progress, and the age of what is known."""
    done = f"update {status.get('updates', 0)}/{status['total_updates']}"
    version = f", version {status['version']}" if "version" in status else ", starting"
    if status["state"] != RUNNING:
        return f"{status['state']} at {done}{version}; its last sign of life was at {clock_time(status['at'])}"
    return f"live, process {status['pid']}, {done}{version}, as of {now - status['at']:.1f} s ago"


def driver_line(status: Mapping[str, Any], now: float) -> list[str]:
    """Whether the driver itself is stuck."""
    age = now - status["at"]
    if status["state"] != RUNNING or age < SILENT_S:
        return []
    waits = status["waits"]
    inside = f"inside {waits[0]['method']} of {waits[0]['actor']}" if waits else "between two waits"
    return [f"the driver has said nothing for {age:.0f} s: it is {inside}, or process {status['pid']} is stopped"]


def wait_lines(status: Mapping[str, Any]) -> list[str]:
    """One sentence for each wait that takes its time, oldest first."""
    lines = []
    for wait in sorted(status["waits"], key=lambda wait: float(wait["since"])):
        if status["at"] - wait["since"] >= PATIENCE_S:
            actor = status["actors"].get(wait["actor"], {"silent_s": None})
            last = None if actor["silent_s"] is None else (status["at"] - actor["silent_s"], actor["last_answer"])
            lines.append(sentence(wait["actor"], wait["method"], wait["since"], last, status["at"]))
    return lines


def queue_lines(status: Mapping[str, Any]) -> list[str]:
    """What lies where, and who serves older weights than the newest."""
    if "queues" not in status:
        return ["no driver yet: actors are being started"]
    held = ", ".join(f"{depth} {name.replace('_', ' ')}" for name, depth in status["queues"].items() if depth)
    lines = [f"held: {held or 'nothing'}"]
    behind = {name: status["updates"] - version for name, version in status["serving"].items()
              if version < status["updates"]}
    lines += [f"{name} serves weights {late} versions behind" for name, late in sorted(behind.items())]
    if not status["serving"]:
        lines.append("no generator serves: nothing can be sampled")
    return lines


def stall_lines(folder: Path) -> list[str]:
    """The newest stalls that were written down, and what they held up."""
    files = sorted((folder / "stalls").glob("*.json"))
    lines = [f"{len(files)} stalls were written to {folder / 'stalls'}"] if files else ["no stall was written down"]
    for file in files[-SHOWN_STALLS:]:
        try:
            stall = json.loads(file.read_text())
        except json.JSONDecodeError:
            lines.append(f"{file.name} is torn and is left out")
            continue
        lines.append(f"{clock_time(stall['at'])} {stall['passed']}: {stall['sentence']}{_held(stall)}")
    return lines


def _held(stall: Mapping[str, Any]) -> str:
    """What the actor of a stall held, from the picture that was taken."""
    held = Counter(
        group["group"] for group in stall.get("groups", ()) for _, _, holder, _ in group["members"]
        if holder == stall["actor"]
    )
    if not held:
        return ""
    return f"; it held {held.total()} trajectories of groups {', '.join(map(str, sorted(held)[:8]))}"


def diagnose(folder: Path, now: float | None = None) -> list[str]:
    """Everything that can be said of a run from its folder, one line each.

    Args:
        folder: of the run, dead or alive.
        now: wall clock in seconds; None: this moment.

    Raises:
        RunFolderError: it is not the folder of a run that has begun.
    """
    status, now = read_status(folder), time.time() if now is None else now
    ended = status["state"] in ("complete", "stopped")
    open_ends = [] if ended else [*driver_line(status, now), *wait_lines(status), *queue_lines(status)]
    return [headline(status, now), *open_ends, *stall_lines(folder)]


def main() -> None:
    """Diagnose the folder on the command line."""
    if len(sys.argv) != 2:
        print("usage: perilune doctor RUNDIR", file=sys.stderr)
        raise SystemExit(2)
    try:
        print("\n".join(diagnose(Path(sys.argv[1]))))
    except (PeriluneError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()

"""Named points where a process can be made to fail, so that recovery is tested where it matters.

``PERILUNE_FAULT="generator.decode:3:KILL"`` sends SIGKILL to the process that reaches that point for the
third time; several faults are separated by commas. ``PERILUNE_FAULT_DIR`` names a folder in which a fault
that fires leaves a file with the id of the process: it never fires again, neither in a restarted actor nor
in the next life of the run. Without the variable a point is one look into the environment.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError

FAULT = "PERILUNE_FAULT"
FOLDER = "PERILUNE_FAULT_DIR"
_reached: Counter[str] = Counter()


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the process that reaches ``point`` for the ``nth`` time."""

    point: str
    nth: int
    action: signal.Signals


def parse(text: str) -> tuple[Fault, ...]:
    """Faults as the environment spells them.

    Raises:
        ConfigError: it is spelled otherwise.

    Example:
        >>> parse("judge.judge:2:KILL")[0].nth
        2
    """
    faults = []
    for part in text.split(","):
        try:
            point, nth, action = part.split(":")
            faults.append(Fault(point, int(nth), signal.Signals[f"SIG{action}"]))
        except (ValueError, KeyError) as error:
            raise ConfigError(FAULT, part, "write point:nth:signal, such as learner.update:1:KILL") from error
    return tuple(faults)


def reach(point: str) -> None:
    """Tell that this process is here; a fault planned for here fires.

    Raises:
        ConfigError: the plan cannot be read, or the folder for its marks is missing.
    """
    text = os.environ.get(FAULT)
    if not text:
        return
    _reached[point] += 1
    for fault in parse(text):
        if fault.point == point and fault.nth == _reached[point] and _mark(point):
            os.kill(os.getpid(), fault.action)


def _mark(point: str) -> bool:
    """Leave the mark of a fault; False when it fired before, in this process or in another."""
    folder = Path(os.environ.get(FOLDER, ""))
    if not os.environ.get(FOLDER) or not folder.is_dir():
        raise ConfigError(FOLDER, os.environ.get(FOLDER), "name a folder in which fired faults leave their mark")
    try:
        descriptor = os.open(folder / point, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    os.write(descriptor, str(os.getpid()).encode())
    os.close(descriptor)
    return True

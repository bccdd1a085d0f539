"""Work of others on the machine while a run is made: it would be taken for a slow arm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_IDLE = (3, 4)  # idle, and waiting for a disk, among the columns of /proc/stat
_COLUMNS = 8  # guests, further on, are counted under user already


@dataclass(frozen=True, slots=True)
class _Process:
    key: tuple[int, int]
    """Number and start: numbers come again."""
    parent: int
    ticks: int
    """Processor time so far, threads included."""


class ForeignWork:
    """Busy time of all cores less that of the ablation, which is this process and all that descend from it.

    Descendants are looked at while they live. What the kernel sums up for parents would not do: raylet does not wait
    for the workers of Ray, whose times then reach nobody. What a process does after the last look at it, and one that
    lives between two looks, counts as foreign: look about once a second. Time that a host takes from the machine
    (steal) is foreign as well.
    """

    def __init__(self, root: int | None = None, proc: Path = _PROC) -> None:
        """Count from here.

        Args:
            root: process whose descendants are no strangers; None: this one.
            proc: where the kernel tells.
        """
        self._root = os.getpid() if root is None else root
        self._proc = proc
        self._own: dict[tuple[int, int], tuple[int, int]] = {}
        """Process -> ticks when counting began, and at the last look."""
        self._began = self._latest = self._machine()
        self._look(first=True)

    def look(self) -> None:
        """Count up to here."""
        self._latest = self._machine()
        self._look(first=False)

    @property
    def share(self) -> float | None:
        """Between the first look and the last, of all cores: 0 to 1; None where the clock has not ticked."""
        busy, whole = (late - early for late, early in zip(self._latest, self._began, strict=True))
        own = sum(late - early for early, late in self._own.values())
        return min(max(busy - own, 0) / whole, 1.0) if whole > 0 else None

    def _machine(self) -> tuple[int, int]:
        """Ticks of all cores so far: busy, and whatever they did."""
        line = (self._proc / "stat").read_text().splitlines()[0]
        ticks = [int(word) for word in line.split()[1 : 1 + _COLUMNS]]
        return sum(ticks) - sum(ticks[column] for column in _IDLE), sum(ticks)

    def _look(self, first: bool) -> None:
        alive = list(self._processes())
        # One that has lost its parent stays what it was.
        own = {one.key[0] for one in alive if one.key in self._own or one.key[0] == self._root}
        while more := {one.key[0] for one in alive if one.parent in own} - own:
            own |= more
        for one in alive:
            if one.key[0] in own:
                early, _ = self._own.get(one.key, (one.ticks if first else 0, 0))
                self._own[one.key] = early, one.ticks

    def _processes(self) -> Iterator[_Process]:
        for entry in self._proc.iterdir():
            if entry.name.isdigit():
                try:
                    told = (entry / "stat").read_text()
                except (FileNotFoundError, ProcessLookupError):  # it has just ended
                    continue
                words = told.rpartition(")")[2].split()  # the name before may hold spaces
                yield _Process((int(entry.name), int(words[19])), int(words[1]), int(words[11]) + int(words[12]))

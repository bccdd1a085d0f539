"""What the controller knows of every living generator: what it serves, what it holds, until when it may be silent.

Every question costs the same with four generators and with thousands: few versions are served at any time,
and for each of them the generators stand in a heap by what they hold. An entry that no longer holds is
passed over when it comes to the top.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass

_SLACK = 16
"""Entries beyond four a generator, above which a heap is made anew."""
_GLANCES = 4
"""Looks at the clock, at least, within a lease that expires."""


@dataclass(slots=True)
class GeneratorSeat:
    """A living generator: what it serves, how many trajectories it holds, until when it may be silent."""

    version: int
    open_trajectories: int = 0
    lease_until: float | None = None
    """On the clock of :attr:`Seats.watched_s`. None: it spoke or took work since the clock last told the time."""
    cut_asked: bool = False
    """It was asked to cut and has not spoken since."""


class Seats:
    """Living generators by name."""

    def __init__(self, awaited: int = 0) -> None:
        """Nobody lives yet.

        Args:
            awaited: how many must live together before the first work is handed out.
        """
        self.awaited = awaited
        """0 from then on: later some may be missing."""
        self.by_name: dict[str, GeneratorSeat] = {}
        self.fresh = 0
        """The newest version that all then living served at one time: new groups are sampled by no older."""
        self.watched_s = 0.0
        """Seconds of the injected clock so far, a silence of it counted as a part of a lease at most."""
        self._told: float | None = None
        """What the clock told last."""
        self._serving: Counter[int] = Counter()
        """Version -> generators."""
        self._loads: dict[int, list[tuple[int, str]]] = {}
        """Version -> heap of (trajectories, generator)."""
        self._holding: set[str] = set()

    def __len__(self) -> int:
        return len(self.by_name)

    def _enters(self, name: str, seat: GeneratorSeat) -> None:
        """A seat with its version counts from now on."""
        self._serving[seat.version] += 1
        self._stands(name, seat)

    def _leaves(self, seat: GeneratorSeat) -> None:
        self._serving[seat.version] -= 1
        if not self._serving[seat.version]:
            del self._serving[seat.version]
            self._loads.pop(seat.version, None)

    def _stands(self, name: str, seat: GeneratorSeat) -> None:
        """What it holds has changed."""
        heap = self._loads.setdefault(seat.version, [])
        heapq.heappush(heap, (seat.open_trajectories, name))
        if len(heap) > 4 * self._serving[seat.version] + _SLACK:
            heap[:] = [(other.open_trajectories, key) for key, other in self.by_name.items()
                       if other.version == seat.version]
            heapq.heapify(heap)
        (self._holding.add if seat.open_trajectories else self._holding.discard)(name)

    def _raise_fresh(self) -> None:
        self.fresh = max(self.fresh, min(self._serving, default=0))

    def join(self, name: str, version: int) -> None:
        """A generator lives."""
        if name in self.by_name:
            self._leaves(self.by_name[name])
        seat = self.by_name[name] = GeneratorSeat(version)
        self._enters(name, seat)
        self._raise_fresh()
        self._await(self.awaited)

    def expect_fewer(self) -> None:
        """Of those that are awaited one does not come."""
        self._await(self.awaited - 1)

    def _await(self, count: int) -> None:
        self.awaited = count if len(self.by_name) < count else 0

    def leave(self, name: str) -> None:
        """A generator is gone; once more is harmless."""
        seat = self.by_name.pop(name, None)
        if seat is not None:
            self._holding.discard(name)
            self._leaves(seat)
        self._raise_fresh()

    def hear(self, name: str, version: int) -> GeneratorSeat | None:
        """A generator spoke, which renews its lease; None when it is not believed to live."""
        seat = self.by_name.get(name)
        if seat is not None:
            seat.lease_until, seat.cut_asked = None, False
            if version > seat.version:
                self._leaves(seat)
                seat.version = version
                self._enters(name, seat)
                self._raise_fresh()
        return seat

    def all_serve(self, version: int) -> bool:
        """Somebody lives, and nobody serves anything older."""
        return bool(self._serving) and min(self._serving) >= version

    def take(self, oldest: int, count: int) -> str | None:
        """The least loaded generator that serves ``oldest`` or newer gets ``count`` trajectories."""
        able = [self._least(version) for version in self._serving if version >= oldest]
        if not able:
            return None
        open_before, name = min(able)
        seat = self.by_name[name]
        seat.open_trajectories += count
        self._stands(name, seat)
        if not open_before:
            seat.lease_until = None
        return name

    def _least(self, version: int) -> tuple[int, str]:
        """Of those that serve a version, who holds least."""
        heap = self._loads[version]
        while True:
            load, name = heap[0]
            seat = self.by_name.get(name)
            if seat is not None and seat.version == version and seat.open_trajectories == load:
                return heap[0]
            heapq.heappop(heap)

    def hand_back(self, name: str) -> None:
        """One of its trajectories came back."""
        seat = self.by_name[name]
        seat.open_trajectories -= 1
        self._stands(name, seat)

    def holders(self) -> list[str]:
        """Who holds trajectories, by name."""
        return sorted(self._holding)

    def tick(self, now: float, lease_s: float) -> list[str]:
        """Start the leases of all who spoke since the last tick; who let a lease expire, by name.

        A lease counts from the first tick after the last word, and only time in which the clock was looked at:
        while it is silent answers arrive that nobody takes. So a silence costs at most a quarter of a lease, however
        long it was.
        """
        silent_s = 0.0 if self._told is None else now - self._told
        self._told = now
        self.watched_s += min(silent_s, lease_s / _GLANCES)
        late = []
        for name in self.holders():
            seat = self.by_name[name]
            if seat.lease_until is None:
                seat.lease_until = self.watched_s + lease_s
            elif seat.lease_until < self.watched_s:
                late.append(name)
        return late

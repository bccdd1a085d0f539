"""Virtual time: who computes beside whom, and when each is done.

Three kinds of machine: every actor on its own (a job lasts what it costs), one machine for all (whoever
computes beside others is slowed by a measured share), and one process (jobs run one after another, in the
order of their calls, between what the driver does).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from itertools import count


class Machines(StrEnum):
    """Where actors compute."""

    separate = "separate"
    shared = "shared"
    serial = "serial"


@dataclass(slots=True, eq=False)
class Job:
    """A call that runs, and what its answer sets off."""

    actor: str
    seconds: float
    """Of work that is left, at full speed."""
    heavy: bool
    transport: float
    done: Callable[[], None]


class Clock:
    """Runs jobs and hands their answers to the driver, one after another."""

    def __init__(self, machines: Machines, contention: float) -> None:
        """Time 0, nothing under way."""
        self.now = 0.0
        """Virtual seconds; while an answer is handled, when the driver will be done with what it has done."""
        self.busy: dict[str, float] = {}
        """Actor -> seconds in which it worked."""
        self._machines, self._contention = machines, contention
        self._order = count()
        self._happens: list[tuple[float, int, Callable[[float], None]]] = []
        self._running: list[Job] = []
        self._looked = 0.0
        self._generation = 0
        self._turns: deque[Job] = deque()
        self._driver_free = 0.0

    def work(self, actor: str, seconds: float) -> None:
        """The driver is busy; what it does after this comes later."""
        self.now += seconds
        self._driver_free = self.now
        self.busy[actor] = self.busy.get(actor, 0.0) + seconds

    def start(self, job: Job) -> None:
        """Call an actor, as the driver stands now."""
        if self._machines is Machines.serial:
            self._turns.append(job)
        elif self._machines is Machines.shared and job.heavy:
            self._at(self.now + job.transport / 2, lambda at: self._join(job, at))
        else:
            self.busy[job.actor] = self.busy.get(job.actor, 0.0) + job.seconds
            self._at(self.now + job.seconds + job.transport, lambda at: self._answer(job, at))

    def run(self, over: Callable[[], bool]) -> None:
        """Until it is over, or nothing happens any more."""
        while not over():
            if self._turns:
                job = self._turns.popleft()
                self.busy[job.actor] = self.busy.get(job.actor, 0.0) + job.seconds
                self._answer(job, self.now + job.seconds + job.transport)
            elif self._happens:
                at, _, happen = heapq.heappop(self._happens)
                happen(at)
            else:
                return

    def _at(self, time: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._happens, (time, next(self._order), happen))

    def _answer(self, job: Job, at: float) -> None:
        self.now = self._driver_free = max(at, self._driver_free)
        job.done()

    # ---- one machine for all -------------------------------------------------------------------

    def _pass_time(self, at: float) -> None:
        """All that runs gets done what it could since the last look."""
        if self._running:
            lasted = max(at - self._looked, 0.0)
            speed = 1 / (1 + self._contention * (len(self._running) - 1))
            for job in self._running:
                job.seconds -= lasted * speed
                self.busy[job.actor] = self.busy.get(job.actor, 0.0) + lasted
        self._looked = max(at, self._looked)

    def _join(self, job: Job, at: float) -> None:
        self._pass_time(at)
        self._running.append(job)
        self._look_again(at)

    def _look_again(self, at: float) -> None:
        """Come back when the next of them is done, unless another joins before."""
        self._generation += 1
        if self._running:
            first = min(self._running, key=lambda job: job.seconds)
            slower = 1 + self._contention * (len(self._running) - 1)
            generation = self._generation
            self._at(at + max(first.seconds, 0.0) * slower, lambda when: self._finish(first, generation, when))

    def _finish(self, job: Job, generation: int, at: float) -> None:
        if generation != self._generation:
            return
        self._pass_time(at)
        self._running.remove(job)
        self._at(at + job.transport / 2, lambda when: self._answer(job, when))
        self._look_again(at)

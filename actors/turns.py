"""Turns on shared devices: generators and learner compute on the same ones, never at the same time.

::

    generators sample ----> all sleep ----> learner onloads, learns, offloads ----> generators wake with new weights
         ^                                                                              |
         +------------------------------------------------------------------------------+

Schedules with rounds alternate so by themselves: an update begins when nothing is being sampled. Here the change
is waited for, and whoever samples is kept from waking in between. Where devices are not shared, nobody waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.config.cluster import Placement

if TYPE_CHECKING:
    from actors.driver import Driver


class Turns:
    """Whose turn it is."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._shares = driver.config.cluster.placement is Placement.colocated
        self._then: Callable[[], None] | None = None
        self._awake: set[str] = set()
        """Asked to sleep, and not heard of yet."""
        self._late: list[str] = []
        """Started while the learner had its turn."""
        self._began = self._sleep_s = self._wake_s = 0.0
        self.learning = False
        """The learner has the devices, or is about to have them."""

    def to_learner(self, then: Callable[[], None]) -> None:
        """Go on with ``then`` once everybody who samples has left the devices."""
        if not self._shares:
            then()
            return
        driver, self._began, self.learning, self._then = self._driver, time.monotonic(), True, then
        self._awake = {*driver.supervisor.generators, driver.supervisor.evaluator}
        # Behind an evaluation that still runs: an actor answers one call after the other.
        for name in sorted(self._awake):
            driver.later(partial(self._slept, name), name, "sleep")

    def _slept(self, name: str, _: Any) -> None:
        self._awake.discard(name)
        if self._then is not None and not self._awake:
            then, self._then = self._then, None
            self._sleep_s = time.monotonic() - self._began
            then()

    def lost(self, name: str) -> None:
        """An actor died, and is not waited for; its successor is born asleep."""
        self._late = [late for late in self._late if late != name]
        self._slept(name, None)

    def to_generators(self) -> None:
        """The learner is done: generators may wake, and those who came meanwhile are welcome."""
        if not self.learning:
            return
        self.learning = False
        self._driver.generation.wake()
        late, self._late = self._late, []
        for name in late:
            self._driver.generation.welcome(name)

    def welcome(self, name: str) -> None:
        """A new generator joins, as soon as it may use its device."""
        if self.learning:
            self._late.append(name)
        else:
            self._driver.generation.welcome(name)

    def woke(self, seconds: float) -> None:
        """A generator answered, and had to wake first if it took time."""
        self._wake_s = max(self._wake_s, seconds)

    def metrics(self) -> dict[str, float]:
        """Seconds of the last turns, where there are any."""
        if not self._shares:
            return {}
        found = {"hybrid/sleep_seconds": self._sleep_s, "hybrid/wake_seconds": self._wake_s}
        self._wake_s = 0.0
        return found

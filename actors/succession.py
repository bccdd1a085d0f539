"""Succession: an actor died, another one takes its place, and the run goes on while that one comes up.

A successor is asked one thing first, which tells that it lives. Its answer is awaited like any other, so that
meanwhile events are heard, leases run and a wish to stop is heeded.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from actors.supervisor import first_answer_s, next_incarnation
from engine.errors import ActorError
from engine.records import arrival
from engine.records import event as ev

if TYPE_CHECKING:
    from actors.driver import Driver


class Succession:
    """Who came to take the place of whom."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.coming: set[str] = set()
        """Started, and not heard of yet."""

    def deadline_s(self, name: str) -> float:
        """Seconds that an answer may take; who is not heard of yet must come up first."""
        config = self._driver.config
        usual = config.cluster.call_deadline_s
        return usual + first_answer_s(config, name) if name in self.coming else usual

    def died(self, error: ActorError) -> None:
        """An actor is gone: replace it, or end this life of the run.

        Raises:
            ActorError: it cannot be replaced.
            ClusterError: there is no room for an actor without which nothing goes on.
        """
        driver, old = self._driver, error.actor
        if driver.supervisor.replaced(old):
            return
        driver.note(arrival.Died(old))
        new = driver.replace(error)
        if new != next_incarnation(old):
            driver.note(arrival.Replaced(new))
        driver.observer.totals["restarts"] += 1
        follows = f"{new} takes its place" if new else f"nobody takes its place: {driver.supervisor.refusal}"
        driver.observer.say(f"{error}; {follows}")
        driver.forget(old)
        self.coming.discard(old)
        if new:
            driver.later(partial(self._came, new), new, "metrics", deadline_s=first_answer_s(driver.config, new))
            self.coming.add(new)
        if old.startswith("evaluator"):
            driver.evaluator.abandon()
        elif old.startswith("judge"):
            driver.evaluator.abandon()
            driver.judging.again()
        else:
            driver.generation.lost(old)
            driver.feed(ev.GeneratorLost(old))
            if not new:
                driver.feed(ev.NobodyFollows(old))
        driver.turns.lost(old)

    def _came(self, name: str, _: Any) -> None:
        """A successor lives; where it does is looked at while nothing else can keep it from answering."""
        self.coming.remove(name)
        if name.startswith("judge"):
            return
        try:
            self._driver.supervisor.check_machines([name])
        except ActorError as error:
            self.died(error)
            return
        if name.startswith("generator"):
            self._driver.turns.welcome(name)

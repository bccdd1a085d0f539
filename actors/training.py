"""The driver's side of the learner: groups out, a new version in, and the books kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.records import event as ev
from engine.records.manifest import Manifest
from engine.records.trajectory import DropReason
from engine.records.update import UpdateReport

if TYPE_CHECKING:
    from actors.driver import Driver


class Training:
    """The update under way, and the newest weights."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.manifest: Manifest | None = None
        """Of the version that generators should serve."""
        self.members: dict[int, tuple[int, ...]] = {}
        """Group id -> trajectory ids, while it is outstanding."""

    def train(self, command: ev.Train) -> None:
        """Hand complete groups to the learner; over Ray they pass from replay without the driver."""
        driver = self._driver
        for group_id in command.group_ids:
            prompt_id = driver.controller.roster.groups[group_id].prompt_id
            correct = driver.judging.forget(self.members[group_id])
            driver.draw.observe(prompt_id, sum(correct) / len(correct), len(correct))
        groups = driver.cluster.call("replay", "take", command.group_ids, driver.controller.version.updates)
        driver.later(
            lambda answer: self._updated(command.group_ids, *answer), "learner", "update", groups
        )

    def _updated(self, group_ids: tuple[int, ...], report: UpdateReport, manifest: Manifest | None) -> None:
        driver = self._driver
        ids = [key for group_id in group_ids for key in self.members.pop(group_id)]
        if report.committed:
            driver.ledger.consume(ids, report.carried_tokens, report.masked_tokens)
            self.manifest = manifest
        else:
            driver.observer.say("the update was not finite and is not committed; its groups are dropped")
            driver.ledger.drop(ids, DropReason.non_finite)
        driver.ledger.check()
        driver.feed(ev.Updated(report.version, report.committed))
        if report.committed:
            extra = driver.replay("metrics") | driver.ledger.metrics()
            driver.observer.updated(report, len(ids), extra)
            driver.evaluator.consider(report.version, manifest)

    def published(self, _: ev.Publish) -> None:
        """The learner wrote the weights with its update; generators learn of them now."""
        assert self.manifest is not None, "an update that is published has a manifest"
        self._driver.generation.publish(self.manifest)

    def drop(self, command: ev.DropGroup) -> None:
        """A group leaves without being trained."""
        driver = self._driver
        driver.replay("forget", command.group_id)
        members = self.members.pop(command.group_id)
        driver.judging.forget(members)
        driver.ledger.drop(members, command.reason)
        if command.quarantine:
            driver.draw.quarantine(command.prompt_id)

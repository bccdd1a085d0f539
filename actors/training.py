"""The driver's side of the learner: groups out, a new version in, and the books kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from engine.config.run import Only
from engine.faults import reach
from engine.records import arrival
from engine.records import event as ev
from engine.records.manifest import Manifest
from engine.records.trajectory import DropReason
from engine.records.update import UpdateReport
from engine.records.version import PolicyVersion
from engine.replay.selection_bias import STALE, LeftGroup

if TYPE_CHECKING:
    from actors.driver import Driver

RECORDED = "recorded"
"""Why tokens that were only written down carried no loss."""


class Training:
    """The update under way, and the newest weights."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._records = driver.config.train.only is Only.rollout
        self.manifest: Manifest | None = None
        """Of the version that generators should serve."""
        self.members: dict[int, tuple[int, ...]] = {}
        """Group id -> trajectory ids, while it is outstanding."""
        self.batches = 0
        """Batches that were written down instead of learned from."""
        self._refusals: dict[PolicyVersion, list[Callable[[], None]]] = {}
        """What goes on once a version that was refused is written anew."""

    @property
    def recorded_all(self) -> bool:
        """Nothing is learned in this run, and all its batches are written."""
        return self._records and self.batches >= self._driver.config.learning.updates

    def train(self, command: ev.Train) -> None:
        """Hand complete groups to the learner; over Ray they pass from replay without the driver."""
        driver, ids = self._driver, command.group_ids
        for group_id in ids:
            group = driver.controller.roster.groups[group_id]
            correct = driver.judging.forget(self.members[group_id])
            driver.draw.observe(group.prompt_id, sum(correct) / len(correct), len(correct))
            age = driver.controller.version.updates - group.oldest
            lost = STALE if age > driver.config.schedule.max_staleness else ""
            lengths = [member.length for member in group.members]
            self._left(group.prompt_id, lengths, correct, lost, age)
        groups = driver.cluster.call("replay", "take", ids, driver.controller.version.updates)
        if self._records:
            driver.later(lambda tokens: self._recorded(ids, tokens), "learner", "record", self.batches, groups)
        else:
            driver.turns.to_learner(
                lambda: driver.later(lambda answer: self.updated(ids, *answer), "learner", "update", groups)
            )

    def updated(self, group_ids: tuple[int, ...], report: UpdateReport, manifest: Manifest | None) -> None:
        """The learner finished an update: book it, then let the controller go on."""
        driver = self._driver
        ids = self._leave(group_ids)
        if report.committed:
            driver.ledger.consume(ids, report.carried_tokens, report.masked_tokens)
            self.manifest = manifest
            driver.note(arrival.Committed(report.version, "" if manifest is None else manifest.digest))
            # Before the controller hears of it, which may write a checkpoint at once.
            metrics = driver.replay("metrics") | driver.ledger.metrics() | driver.turns.metrics()
            metrics["schedule/outstanding_groups"] = float(len(self.members))
            driver.observer.updated(report, len(ids), metrics)
        else:
            driver.observer.say("the update was not finite and is not committed; its groups are dropped")
            driver.ledger.drop(ids, DropReason.non_finite)
        driver.ledger.check()
        driver.turns.to_generators()
        driver.feed(ev.Updated(report.version, report.committed, driver.time_is_up))
        reach("driver.updated")
        if report.committed:
            driver.evaluator.consider(report.version, manifest)

    def _recorded(self, group_ids: tuple[int, ...], tokens: int) -> None:
        """A batch is on disk; to the controller that is an update without a new version."""
        driver = self._driver
        self.batches += 1
        driver.ledger.consume(self._leave(group_ids), 0, {RECORDED: tokens})
        driver.ledger.check()
        driver.observer.recorded(self.batches, tokens)
        if not self.recorded_all:
            driver.feed(ev.Updated(driver.controller.version, committed=False))

    def _leave(self, group_ids: tuple[int, ...]) -> list[int]:
        return [key for group_id in group_ids for key in self.members.pop(group_id)]

    def _left(self, prompt_id: str, lengths: list[int], correct: list[bool], lost: str, age: int) -> None:
        """A group was trained or lost: the meter of selection bias hears of it."""
        prompt = self._driver.prompts.by_id[prompt_id]
        self._driver.observer.selection.left(LeftGroup(
            length=sum(lengths) / len(lengths), success=sum(correct) / len(correct) if correct else None,
            labels=(prompt.kind, *prompt.tags), age=age, lost=lost,
        ))

    def published(self, _: ev.Publish) -> None:
        """The learner wrote the weights with its update; generators learn of them now."""
        assert self.manifest is not None, "an update that is published has a manifest"
        self._driver.generation.publish(self.manifest)

    def publish_again(self, refused: Manifest, then: Callable[[], None]) -> None:
        """A generator refused these weights: have them written once more unless others stand by now, then go on.

        Those who refuse them meanwhile go on together.
        """
        if refused is not self.manifest:
            then()
            return
        waiting = self._refusals.setdefault(refused.version, [])
        waiting.append(then)
        if len(waiting) == 1:
            self._driver.later(partial(self._written_again, refused.version), "learner", "publish", refused.version)

    def _written_again(self, version: PolicyVersion, manifest: Manifest | None) -> None:
        """The learner wrote a version anew, or has a newer one."""
        if manifest is not None and self.manifest is not None and self.manifest.version == version:
            self.manifest = manifest
            self._driver.generation.renew(manifest)
        for then in self._refusals.pop(version):
            then()

    def drop(self, command: ev.DropGroup) -> None:
        """A group leaves without being trained."""
        driver = self._driver
        lengths = driver.replay("forget", command.group_id)
        members = self.members.pop(command.group_id)
        correct = driver.judging.forget(members)
        self._left(command.prompt_id, list(lengths.values()), correct, command.reason.value, command.age_versions)
        driver.ledger.drop(members, command.reason)
        if command.quarantine:
            driver.draw.quarantine(command.prompt_id)

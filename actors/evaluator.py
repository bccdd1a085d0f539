"""Evaluation while training goes on: one stamped version, its own actor, its own ids, its own account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actors.cluster import ask
from engine.errors import ActorError, NonFiniteError, WeightChannelError
from engine.evaluation import evaluation_requests, score
from engine.records.manifest import Kept, Manifest
from engine.records.prompt import Prompt
from engine.records.trajectory import Trajectory, Verdict
from engine.records.version import PolicyVersion
from engine.records.work import Delivery, GeneratorOrder, GeneratorReport
from engine.weights.kept import kept_in

if TYPE_CHECKING:
    from actors.driver import Driver

ALL_STEPS = 2**31
TRIES = 3
KEPT = "evaluations"
"""Folder of a run for versions that are evaluated once training has ended."""


class Evaluator:
    """Asks the evaluator actor for answers to held-out prompts, and the judge for verdicts."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._known: PolicyVersion | None = None
        self._prompts: Sequence[Prompt] = driver.prompts.heldout
        self._tokens = [driver.tokenizer.render(prompt) for prompt in self._prompts]
        self._busy = False

    def consider(self, version: PolicyVersion, manifest: Manifest | None) -> None:
        """Evaluate this version if it is due and the last evaluation has ended."""
        driver, every = self._driver, self._driver.config.evaluation.every_in_training
        last = version.updates >= driver.config.learning.updates
        free = not self._busy and driver.supervisor.evaluator not in driver.succession.coming
        if every and version.updates % every == 0 and not last and free:
            self.start(version, manifest)

    def start(self, version: PolicyVersion, manifest: Manifest | Kept | None) -> None:
        """Begin; the result reaches the observer when it is there."""
        driver, options = self._driver, self._driver.config.evaluation
        self._busy = True
        requests = evaluation_requests(
            self._tokens, driver.config.rollout, options.samples, options.temperature, -1
        )
        order = GeneratorOrder(tuple(requests), manifest, False, ALL_STEPS)
        name = driver.supervisor.evaluator
        driver.later(lambda report: self._sampled(version, report), name, "advance", order)

    def _sampled(self, version: PolicyVersion, report: GeneratorReport) -> None:
        driver = self._driver
        if report.refused or report.version != version:
            driver.observer.say(f"evaluation of version {version} is left out: {report.refused}")
            self._busy = False
            return
        tokens = sum(s.num_sampled for d in report.deliveries for s in d.segments)
        driver.ledger.account("evaluation", tokens)
        deliveries = {d.trajectory_id: d for d in report.deliveries}
        per_prompt = 1 + driver.config.evaluation.samples
        items = [
            (self._prompts[(-trajectory_id - 1) // per_prompt], _as_trajectory(delivery))
            for trajectory_id, delivery in sorted(deliveries.items(), reverse=True)
        ]
        driver.later(
            lambda report: self._judged(version, deliveries, report.verdicts), driver.supervisor.judge,
            "judge", items,
        )

    def _judged(self, version: PolicyVersion, deliveries: dict[int, Delivery],
                verdicts: Mapping[int, Verdict]) -> None:
        self._busy, self._known = False, version
        driver = self._driver
        driver.observer.evaluated(
            score(self._prompts, deliveries, verdicts, version=version,
                  samples=driver.config.evaluation.samples, decode=driver.tokenizer.decode)
        )

    def finish(self, version: PolicyVersion, manifest: Manifest | Kept | None) -> None:
        """Evaluate this version now and wait for the result, but not beyond a wish to stop.

        A dead evaluator or judge costs a try, and so do weights that it refuses.
        """
        driver = self._driver
        for _ in range(TRIES):
            driver.wait_for("evaluator", "judge", unless_stopped=True)
            if self._known == version or driver.should_stop():
                return
            self.start(version, manifest)
        driver.wait_for("evaluator", "judge", unless_stopped=True)

    def catch_up(self, folder: Path, newest: PolicyVersion) -> None:
        """Evaluate what was kept while training went on, oldest first; each file goes once that is done."""
        driver = self._driver
        kept = kept_in(folder)
        # The newest has its turn at the end; what is newer still is left of a life that was rolled back.
        due = [one for one in kept if one.version.updates < newest.updates
               and one.version.updates not in driver.observer.accuracy]
        if due:
            driver.observer.say(f"evaluating {len(due)} versions that were kept")
        for one in kept:
            if one in due:
                self.finish(one.version, one)
            if driver.should_stop():
                return
            Path(one.path).unlink()

    def canary(self, manifest: Manifest | None) -> None:
        """Sample a little at learning rate 0 and compare log-probs with the learner; leaves no trace.

        Raises:
            NonFiniteError: generator and learner disagree by more than the stated threshold: training
                would follow an importance ratio that is not there.
        """
        driver, options = self._driver, self._driver.config.canary
        if not options.prompts:
            return
        rollout, deadline_s = driver.config.rollout, driver.config.cluster.call_deadline_s
        tokens = self._tokens[: options.prompts]
        requests = evaluation_requests(tokens, rollout, 1, rollout.temperature, -1)
        sampled = [request for request in requests if request.temperature > 0]
        report = self._sample(GeneratorOrder(tuple(sampled), manifest, False, ALL_STEPS))
        prompts = {request.trajectory_id: request.prompt_tokens for request in sampled}
        items = [(prompts[d.trajectory_id], d) for d in report.deliveries]
        driver.ledger.account("canary", sum(s.num_sampled for d in report.deliveries for s in d.segments))
        mean, largest = ask(driver.cluster, "learner", "logprob_gap", items, deadline_s=deadline_s)
        driver.observer.canary(mean, largest)
        if not mean <= options.threshold_nats:
            raise NonFiniteError(
                f"canary: behaviour and learner log-probs differ by {mean:.3g} nats on average, above "
                f"canary.threshold_nats={options.threshold_nats}: use generator.precision=float32, or check "
                "that model and tokenizer belong together"
            )

    def _sample(self, order: GeneratorOrder) -> GeneratorReport:
        driver = self._driver
        while True:
            name = driver.supervisor.evaluator
            try:
                report = ask(driver.cluster, name, "advance", order,
                             deadline_s=driver.config.cluster.call_deadline_s)
            except ActorError as error:
                driver.died(error)  # which gives up when restarts are used up
                driver.wait_for("evaluator")
                continue
            if report.refused:
                raise WeightChannelError(report.refused)
            return report

    def abandon(self) -> None:
        """The actor died; the next evaluation starts afresh."""
        self._busy = False


def _as_trajectory(delivery: Delivery) -> Trajectory:
    return Trajectory(
        delivery.trajectory_id, delivery.trajectory_id, "", delivery.attempt, delivery.segments,
        delivery.finish_reason,
    )

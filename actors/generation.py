"""The driver's side of the generators: what each is told next, and what becomes of its answer.

A generator has at most one call open. Its answer brings the tokens, and the next call takes along
whatever gathered meanwhile: newer weights first, then a cut, then new work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.errors import ActorError
from engine.records import event as ev
from engine.records.manifest import Kept, Manifest
from engine.records.work import GeneratorOrder, GeneratorReport

if TYPE_CHECKING:
    from actors.driver import Driver


@dataclass(slots=True)
class Mailbox:
    """What a generator's next call takes along."""

    work: list[int] = field(default_factory=list)
    weights: Manifest | None = None
    cut: bool = False
    open_requests: int = 0
    behind: bool = False
    """Weights are staged that it does not serve yet."""
    busy: bool = False

    @property
    def wanted(self) -> bool:
        """There is something to do."""
        return bool(self.work or self.weights or self.cut or self.open_requests or self.behind)


class Generation:
    """Orders to generators, and their answers."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._boxes: dict[str, Mailbox] = {}

    # ---- commands ------------------------------------------------------------------------------

    def admit(self, command: ev.Admit) -> None:
        """Tell replay and the ledger of a new group."""
        driver = self._driver
        prompt = driver.prompts.by_id[command.prompt_id]
        driver.training.members[command.group_id] = command.trajectory_ids
        driver.replay("admit", command.group_id, prompt, driver.tokenizer.render(prompt),
                      command.trajectory_ids)
        for trajectory_id in command.trajectory_ids:
            driver.ledger.issue(trajectory_id, command.group_id, command.prompt_id)

    def dispatch(self, command: ev.Dispatch) -> None:
        """Work for a generator's next call."""
        self._boxes[command.generator].work.extend(command.trajectory_ids)

    def cut(self, command: ev.CutAll) -> None:
        """Cut all its slots with the next call."""
        self._boxes[command.generator].cut = True

    def publish(self, manifest: Manifest) -> None:
        """Newer weights for everybody; a version that nobody took yet is skipped."""
        for box in self._boxes.values():
            box.weights = manifest

    def renew(self, manifest: Manifest) -> None:
        """A version was written anew: whoever has yet to take it finds it there, and no longer where it was."""
        for box in self._boxes.values():
            if box.weights is not None and box.weights.version == manifest.version:
                box.weights = manifest

    def picture(self) -> dict[str, dict[str, Any]]:
        """What each generator's next call would take along, as plain data."""
        return {
            name: {"work": list(box.work), "weights": None if box.weights is None else str(box.weights.version),
                   "cut": box.cut, "open_requests": box.open_requests, "behind": box.behind, "busy": box.busy}
            for name, box in self._boxes.items()
        }

    def wake(self) -> None:
        """Whoever slept lost its weights, and receives the newest with the next call."""
        for box in self._boxes.values():
            box.weights = self._driver.training.manifest

    # ---- calls ---------------------------------------------------------------------------------

    def welcome(self, name: str) -> None:
        """A new generator receives the current version before any work."""
        box = self._boxes[name] = Mailbox(busy=True)
        order = GeneratorOrder(weights=self._driver.training.manifest, max_steps=0)
        self._driver.later(lambda report: self._joined(name, box, order, report), name, "advance", order)

    def _joined(self, name: str, box: Mailbox, order: GeneratorOrder, report: GeneratorReport) -> None:
        if report.refused:
            self._refused(name, "receiving its first weights", report.refused, order.weights)
            return
        box.busy = False
        self._driver.ledger.report(name, 0, 0)
        self._driver.feed(ev.GeneratorJoined(name, report.version))

    def go_on(self) -> None:
        """Call every generator that is free and has something to do."""
        if self._driver.turns.learning:
            return
        for name, box in list(self._boxes.items()):
            if box.wanted and not box.busy:
                self._advance(name, box)

    def _advance(self, name: str, box: Mailbox) -> None:
        driver = self._driver
        requests = ()
        if box.work:
            requests = driver.replay("checkout", name, box.work)
            driver.ledger.dispatch(box.work, name)
        steps = 0 if box.cut else driver.config.generator.steps_per_call
        order = GeneratorOrder(requests, box.weights, box.cut, steps)
        box.work, box.weights, box.cut, box.busy = [], None, False, True
        driver.later(lambda report: self._advanced(name, box, order, report), name, "advance", order)

    def _advanced(self, name: str, box: Mailbox, order: GeneratorOrder, report: GeneratorReport) -> None:
        driver = self._driver
        box.open_requests = report.open_requests
        items = driver.replay("deliver", report) if report.deliveries else ()
        for item in items:
            driver.ledger.deliver(item.trajectory_id, item.new_tokens, item.finish_reason is not None)
        driver.ledger.report(name, report.generated_tokens, report.tokens_in_slots)
        driver.turns.woke(report.wake_seconds)
        driver.observer.generated(report)
        driver.observer.delivered(items)
        manifest = driver.training.manifest
        newest = manifest is None or report.version == manifest.version
        box.behind = not newest and box.weights is None
        wrong = newest and manifest is not None and report.digest != manifest.digest
        # Whoever cannot be trusted with weights stays busy: it is given nothing more.
        box.busy = wrong or bool(report.refused)
        driver.feed(ev.Progressed(name, report.version, items))
        if report.refused:
            self._refused(name, "receiving weights", report.refused, order.weights)
        elif wrong:
            self._refused(name, "serving weights", f"it acknowledged digest {report.digest}", manifest)

    def _refused(self, name: str, during: str, why: str, refused: Manifest | Kept | None) -> None:
        """Replace it, once the weights that its successor will receive are written anew."""
        assert isinstance(refused, Manifest), "only what was sent can be refused"
        error = ActorError(name, during, why)
        self._driver.training.publish_again(refused, lambda: self._driver.died(error))

    def lost(self, name: str) -> None:
        """A generator died; what it had not delivered is gone, and is sampled again.

        At bound 0 by the same random streams, so that a death changes no bit; else by others, since it may
        be those that killed.
        """
        if self._boxes.pop(name, None) is None:
            return  # while it was coming up, before it was told of any weights
        self._driver.ledger.lose(name)
        if self._driver.config.schedule.max_staleness == 0:
            self._driver.replay("release", name)

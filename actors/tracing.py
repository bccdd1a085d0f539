"""The driver's side of the trace: a lane for each actor, what it waits for, and arrows between them.

Work is measured where it is done and comes with the answers; only waits are seen from here, since the
controller alone knows what an actor lacks. A lane begins with the answer to its first call::

    driver        what it does with every answer; questions to replay lie inside
    learner       pack, forward, backward, optimiser, publish; in turns onload, offload
    judge#1       judge
    generator-0#1 receive, prefill, decode; in turns wake, sleep
    evaluator#1   the same, for held-out prompts

Every gap of a lane is a slice ``wait: ...``. The first trajectory of some groups is followed by arrows from
the draw of its prompt over its generators and its judge to the update that trained it, or to the answer with
which the driver dropped it. What is under way when the run ends has arrows without an end.

Clocks of other machines are set right by what cannot be: no work starts before it was asked for, and none
ends after its answer arrived.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from actors.controller import Controller
from actors.placement import role_of
from actors.roster import FINISHED, FLYING
from engine.config.cluster import ClusterKind
from engine.config.run import RunConfig
from engine.records import event as ev
from engine.records.span import Span
from engine.records.update import UpdateReport
from engine.records.work import GeneratorReport, JudgeReport
from engine.run_folder import RunFolder
from engine.trace import TraceWriter, now

DRIVER = "driver"
BEGINS = "training begins"
VERSION = "version"
_LEAST_WAIT_S = 1e-4
_INSIDE_S = 2e-6
"""An arrow is bound to the slice that its point lies in, so not to its very end; one microsecond may round away."""


@dataclass(slots=True)
class Lane:
    """What is known of one actor's time."""

    calls: int = 0
    """That it has not answered yet."""
    last: float = 0.0
    """Nothing may be drawn before this any more."""
    waits: list[tuple[str, float]] = field(default_factory=list)
    """What it waits for since when, in order."""
    earliest: float = -math.inf
    latest: float = math.inf
    """Bounds of what its clock lacks, seconds."""

    def offset(self, sent: float, start: float, stop: float, received: float) -> float:
        """Seconds to add to its clock, after one more call that was sent, ran and was received then."""
        self.earliest = max(self.earliest, sent - start)
        self.latest = min(self.latest, received - stop)
        if self.earliest > self.latest:  # its clock was set meanwhile
            self.earliest, self.latest = sent - start, received - stop
        return min(max(0.0, self.earliest), self.latest)


def waits_for(role: str, controller: Controller) -> str:
    """What an actor without a call lacks: the same for all of a role."""
    roster, schedule = controller.roster, controller.schedule
    if controller.finished:
        return "the end of the run"
    if role == "judge":
        return "finished answers"
    if role == "evaluator":
        return "the next evaluation"
    if controller.checkpointing:
        return "the checkpoint"
    if role == "learner":
        if roster.training:
            return "its turn on the device"
        return "complete groups" if len(roster.complete) < schedule.fewest_groups else "an older group"
    if not schedule.rounds:
        return "room in the window"
    if roster.training:
        return "the update"
    if roster.any(FLYING):
        return "the end of the round"
    return "verdicts" if roster.any(FINISHED) else "weights at every generator"


class Tracer:
    """Writes ``trace.json``, or nothing where ``run.trace`` is off."""

    def __init__(self, config: RunConfig, folder: RunFolder, controller: Controller) -> None:
        section = config.run
        self._writer = TraceWriter(folder.trace_file, section.max_trace_mib * 2**20) if section.trace else None
        self._controller = controller
        self._call = "its turn" if config.cluster.kind is ClusterKind.serial else "its call to arrive"
        self._stride = max(config.schedule.batch_groups // 2, 1)
        self._lanes: defaultdict[str, Lane] = defaultdict(Lane)
        self._idle: defaultdict[str, set[str]] = defaultdict(set)
        self._lacks: dict[str, str] = {}
        self._followed: dict[int, int] = {}
        """Trajectory -> its group."""
        self._training: tuple[int, ...] = ()
        self._handling = False

    def begin(self) -> None:
        """Training begins: what came before counts for no speed."""
        if self._writer is not None:
            self._writer.moment(DRIVER, BEGINS, now(), {})

    # ---- what the driver does ------------------------------------------------------------------

    def called(self, actor: str) -> None:
        """An actor was asked something."""
        if self._writer is None:
            return
        lane = self._lanes[actor]
        lane.calls += 1
        self._idle[role_of(actor)].discard(actor)
        if lane.calls == 1 and lane.last:
            lane.waits.append((self._call, now()))

    @contextmanager
    def handling(self, actor: str, method: str, sent: float, value: Any) -> Iterator[None]:
        """An answer arrived; what the driver does with it is a slice of its own lane."""
        if self._writer is None:
            yield
            return
        received, self._handling = now(), True
        ran = self._answered(actor, sent, received, value)
        yield
        self._handling = False
        args = {"out_s": round(received - sent, 6), "ran_s": round(ran, 6), "items": _items(value)}
        self._writer.slice(DRIVER, f"{role_of(actor)}: {method}", received, now(), args)
        self._settle(actor)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of what the driver does with an answer."""
        start = now()
        yield
        if self._writer is not None and self._handling:
            self._writer.slice(DRIVER, name, start, now(), {})

    def saw(self, command: ev.Command) -> None:
        """The controller decided something: arrows begin where prompts were drawn, and end where groups are dropped."""
        if isinstance(command, ev.Train):
            self._training = command.group_ids
        elif self._writer is not None and self._handling and isinstance(command, ev.Admit):
            if command.group_id % self._stride == 0:
                self._followed[command.trajectory_ids[0]] = command.group_id
                self._writer.arrow(DRIVER, command.trajectory_ids[0], now(), "s")
        elif isinstance(command, ev.DropGroup):
            if self._writer is not None and self._handling:
                for key in [key for key, group in self._followed.items() if group == command.group_id]:
                    self._writer.arrow(DRIVER, key, now(), "f")
            self._forget((command.group_id,))

    def left(self, actor: str) -> None:
        """An actor died; its lane ends."""
        self._lanes.pop(actor, None)
        self._idle[role_of(actor)].discard(actor)

    def close(self) -> None:
        """Finish the file; whoever waits still has waited until now."""
        if self._writer is not None:
            for name, lane in self._lanes.items():
                if lane.calls == 0:
                    self._draw_waits(name, lane, now())
            self._writer.close()

    # ---- what actors did -----------------------------------------------------------------------

    def _answered(self, actor: str, sent: float, received: float, value: Any) -> float:
        """Draw what an answer tells; seconds from its first to its last work."""
        lane, spans = self._lanes[actor], _spans(value)
        start, stop = _extent(value, spans, received)
        offset = lane.offset(sent, start, stop, received)
        lane.calls = max(lane.calls - 1, 0)
        self._draw_waits(actor, lane, start + offset)
        assert self._writer is not None
        first = lane.last
        for one in sorted(spans, key=lambda span: (span.start, -span.stop)):
            begins, ends = max(one.start + offset, first), max(one.stop + offset, first)
            self._writer.slice(actor, one.kind, begins, ends, one.amounts)
            lane.last = max(lane.last, ends)
        lane.last = max(lane.last, stop + offset)
        lane.waits = [("the driver", lane.last)]
        if spans:
            last = spans[-1]
            self._draw_arrows(actor, value, max(last.stop + offset - _INSIDE_S, last.start + offset, first))
        return stop - start

    def _draw_waits(self, actor: str, lane: Lane, until: float) -> None:
        assert self._writer is not None
        for (what, since), (_, end) in pairwise([*lane.waits, ("", until)]):
            start, stop = max(since, lane.last), min(end, until)
            if stop - start >= _LEAST_WAIT_S:
                self._writer.slice(actor, f"wait: {what}", start, stop, {})
                lane.last = stop
        lane.waits = []

    def _draw_arrows(self, actor: str, value: Any, at: float) -> None:
        assert self._writer is not None
        report = _update(value)
        if isinstance(value, GeneratorReport):
            ids: Collection[int] = [delivery.trajectory_id for delivery in value.deliveries]
        elif isinstance(value, JudgeReport):
            ids = value.verdicts.keys()
        elif report is None:
            ids = ()
        else:
            groups = set(self._training)
            ids = [key for key, group in self._followed.items() if group in groups]
        for key in ids:
            if key in self._followed:
                self._writer.arrow(actor, key, at, "t" if report is None else "f")
        if report is not None:
            self._forget(self._training)
            self._mark(report)

    def _forget(self, group_ids: Collection[int]) -> None:
        gone = set(group_ids)
        self._followed = {key: group for key, group in self._followed.items() if group not in gone}

    def _mark(self, report: UpdateReport) -> None:
        assert self._writer is not None
        args = {
            "updates": report.version.updates, "committed": report.committed, "groups": len(self._training),
            "tokens": report.carried_tokens + sum(report.masked_tokens.values()),
            "carried": report.carried_tokens,
            "staleness": {str(age): tokens for age, tokens in sorted(report.staleness.items())},
        }
        self._writer.moment(DRIVER, f"{VERSION} {report.version.updates}", now(), args)

    # ---- waits ---------------------------------------------------------------------------------

    def _settle(self, actor: str) -> None:
        """After an answer was handled: who waits now, and for what."""
        at = now()
        if actor in self._lanes and self._lanes[actor].calls == 0:
            self._idle[role_of(actor)].add(actor)
            self._lanes[actor].waits.append((waits_for(role_of(actor), self._controller), at))
        for role, actors in self._idle.items():
            lacks = waits_for(role, self._controller)
            if lacks != self._lacks.get(role):
                self._lacks[role] = lacks
                for name in actors:
                    self._lanes[name].waits.append((lacks, at))


def _update(value: Any) -> UpdateReport | None:
    """Of a learner's answer."""
    parts = value if isinstance(value, tuple) else ()
    return next((part for part in parts if isinstance(part, UpdateReport)), None)


def _spans(value: Any) -> Sequence[Span]:
    if isinstance(value, tuple) and all(isinstance(one, Span) for one in value):
        return value  # of who left a shared device
    report = value if isinstance(value, GeneratorReport | JudgeReport) else _update(value)
    return () if report is None else report.spans


def _extent(value: Any, spans: Sequence[Span], received: float) -> tuple[float, float]:
    """From when to when it worked; an answer that tells nothing of it took no time."""
    told = [(one.start, one.stop) for one in spans]
    if isinstance(value, GeneratorReport):
        told += value.busy
    elif (report := _update(value)) is not None:
        told.append(report.busy)
    return min((start for start, _ in told), default=received), max((stop for _, stop in told), default=received)


def _items(value: Any) -> int:
    if isinstance(value, GeneratorReport):
        return len(value.deliveries)
    return len(value.verdicts) if isinstance(value, JudgeReport) else 0

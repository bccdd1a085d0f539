"""A run in virtual time: the real controller, driven by actors that only cost time.

No decision is made here: the controller's own step function says what is sampled, judged and trained, so a
prediction follows the same rules as a run. What is modelled is what everything costs
(:mod:`actors.simulation.costs`), how long answers are, and which machines they share.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from actors.controller import Controller
from actors.placement import role_of
from actors.simulation.costs import HEAVY, Costs
from actors.simulation.generator import Answer, SimulatedGenerator, Trip
from actors.simulation.machine import Clock, Job, Machines
from engine.config.schedule import Refill, ScheduleConfig
from engine.records import event as ev
from engine.records.trajectory import FinishReason, Outcome
from engine.records.version import PolicyVersion
from engine.records.work import Progress


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a predicted run is made of."""

    schedule: ScheduleConfig
    updates: int
    samples_per_prompt: int
    generators: int
    slots: int
    prefill_tokens: int
    steps_per_call: int
    learners: int = 1
    """Times the recorded ranks, who share the tokens of an update and, each for the rows it holds, the optimiser's
    step; publishing is not shared."""
    judge_speed: float = 1.0
    """Judges' workers over those that were measured."""
    evaluate_every: int = 0
    checkpoint_every: int = 0
    dull: float = 0.0
    """Share of groups without spread, where such groups are replaced."""
    machines: Machines = Machines.separate
    seed: int = 0


@dataclass(slots=True)
class Box:
    """What a generator's next call takes along: as the driver keeps it."""

    generator: SimulatedGenerator
    joined: bool = False
    work: list[Trip] = field(default_factory=list)
    weights: int | None = None
    cut: bool = False
    busy: bool = False

    @property
    def wanted(self) -> bool:
        """There is something to do."""
        one = self.generator
        return bool(self.work or self.weights is not None or self.cut or one.open_requests or one.behind)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a simulated run came to."""

    updates: int
    seconds_per_update: float
    samples_per_second: float
    tokens_per_second: float
    """Trained ones."""
    staleness: dict[int, float]
    """Versions -> share of the trained tokens."""
    idle: dict[str, float]
    """Role -> share of time in which its actors did not work."""
    occupied_slots: float
    """Share of slot steps in which a trajectory decoded, of the time in which generators decode at all."""
    events: int


class World:
    """Carries out a controller's commands in virtual time."""

    def __init__(self, scenario: Scenario, costs: Costs, length: Callable[[int], int]) -> None:
        """Before the first event.

        Args:
            scenario: what is run.
            costs: of everything.
            length: sampled tokens at which a trajectory ends, by its id.
        """
        self._scenario, self._costs, self._length = scenario, costs, length
        self._random = random.Random(scenario.seed)
        self._controller = Controller(
            scenario.schedule, samples_per_prompt=scenario.samples_per_prompt, updates=scenario.updates,
            checkpoint_every=scenario.checkpoint_every, num_generators=scenario.generators,
        )
        self._clock = Clock(scenario.machines, costs.contention)
        self._version = 0
        self._boxes = {f"generator-{index}": self._box() for index in range(scenario.generators)}
        self._due: dict[str, None] = {}
        self._trips: dict[int, Trip] = {}
        self._members: dict[int, tuple[int, ...]] = {}
        self._unjudged: Counter[int] = Counter()
        self._staleness: Counter[int] = Counter()
        self._evaluating = False
        self._judge_free = 0.0
        self._drawn = self._events = self._trained = 0
        self._committed_at = 0.0

    def _box(self) -> Box:
        scenario = self._scenario
        return Box(SimulatedGenerator(
            self._costs, slots=scenario.slots, prefill_tokens=scenario.prefill_tokens,
            mode=scenario.schedule.in_flight, budget=scenario.schedule.cut_tokens, version=-1,
        ))

    def run(self) -> Prediction:
        """Until the last update is committed."""
        for name, box in self._boxes.items():
            box.weights = 0
            self._advance(name, box, steps=0)
        self._clock.run(lambda: self._controller.finished)
        assert self._controller.finished, "nothing is under way and the run is not finished"
        seconds, updates = self._committed_at, self._version
        tokens = sum(self._staleness.values())
        return Prediction(
            updates, seconds / updates, self._trained / seconds, tokens / seconds,
            {age: count / tokens for age, count in sorted(self._staleness.items())}, self._idle(seconds),
            self._occupied(), self._events,
        )

    def _idle(self, seconds: float) -> dict[str, float]:
        busy: Counter[str] = Counter()
        for actor, worked in self._clock.busy.items():
            busy[role_of(actor)] += worked  # type: ignore[assignment]
        counts = {"generator": self._scenario.generators}
        roles = ("generator", "learner", "judge", "driver")
        return {role: max(0.0, 1 - busy[role] / counts.get(role, 1) / seconds) for role in roles}

    def _occupied(self) -> float:
        generators = [box.generator for box in self._boxes.values()]
        steps = sum(one.steps for one in generators) * self._scenario.slots
        return sum(one.tokens for one in generators) / steps if steps else 0.0

    # ---- calls and answers ---------------------------------------------------------------------

    def _call(self, actor: str, seconds: float, done: Callable[[], None]) -> None:
        role = role_of(actor)
        self._clock.start(Job(actor, seconds, role in HEAVY, self._costs.transport.get(role, 0.0), done))

    def _handled(self, role: str, items: int) -> None:
        """The driver takes in an answer."""
        line = self._costs.handle.get(role)
        if line is not None:
            self._clock.work("driver", line.at(items))

    def _feed(self, event: ev.Event) -> None:
        self._events += 1
        for command in self._controller.step(event):
            getattr(self, f"_on_{type(command).__name__.lower()}")(command)

    def _go_on(self) -> None:
        """Call every generator that is free and has something to do."""
        for name in self._due:
            box = self._boxes[name]
            if box.joined and box.wanted and not box.busy:
                self._advance(name, box, self._scenario.steps_per_call)
        self._due.clear()

    def _advance(self, name: str, box: Box, steps: int) -> None:
        answer = box.generator.advance(box.work, box.weights, box.cut, steps)
        box.work, box.weights, box.cut, box.busy = [], None, False, True
        self._call(name, answer.seconds, lambda: self._advanced(name, box, answer))

    def _advanced(self, name: str, box: Box, answer: Answer) -> None:
        self._handled("generator", len(answer.left))
        box.busy = False
        self._due[name] = None
        version = PolicyVersion(0, answer.version)
        if not box.joined:
            box.joined = True
            self._feed(ev.GeneratorJoined(name, version))
        elif answer.left or self._controller.checkpointing or self._news(name, answer.version):
            self._feed(ev.Progressed(name, version, tuple(_progress(trip, new) for trip, new in answer.left)))
        self._go_on()

    def _news(self, name: str, version: int) -> bool:
        """Whether the controller would learn anything from an answer without tokens."""
        return self._controller.seats.by_name[name].version < version

    # ---- commands ------------------------------------------------------------------------------

    def _on_draw(self, command: ev.Draw) -> None:
        first = self._drawn
        self._drawn += command.count
        self._feed(ev.Drawn(tuple(f"p{index}" for index in range(first, self._drawn))))

    def _on_admit(self, command: ev.Admit) -> None:
        self._members[command.group_id] = command.trajectory_ids
        self._unjudged[command.group_id] = len(command.trajectory_ids)
        for key in command.trajectory_ids:
            self._trips[key] = Trip(key, command.group_id, max(self._length(key), 1))

    def _on_dispatch(self, command: ev.Dispatch) -> None:
        self._boxes[command.generator].work.extend(self._trips[key] for key in command.trajectory_ids)
        self._due[command.generator] = None

    def _on_cutall(self, command: ev.CutAll) -> None:
        self._boxes[command.generator].cut = True
        self._due[command.generator] = None

    def _on_judge(self, command: ev.Judge) -> None:
        self._judge(len(command.trajectory_ids), lambda: self._judged(command.trajectory_ids))

    def _judge(self, items: int, done: Callable[[], None]) -> None:
        """Calls of the judge run one after another."""
        seconds = self._costs.judge.base + self._costs.judge.slope * items / self._scenario.judge_speed
        waits = max(self._judge_free - self._clock.now, 0.0) * (self._scenario.machines is not Machines.serial)
        self._judge_free = self._clock.now + waits + seconds
        job = Job("judge", seconds, False, self._costs.transport.get("judge", 0.0) + waits, done)
        self._clock.start(job)

    def _judged(self, ids: Sequence[int]) -> None:
        self._handled("judge", len(ids))
        dull = []
        for key in ids:
            trip = self._trips.get(key)
            if trip is not None:
                self._unjudged[trip.group_id] -= 1
                if not self._unjudged[trip.group_id] and self._random.random() < self._scenario.dull:
                    dull.append(trip.group_id)
        refill = self._scenario.schedule.no_spread is Refill.refill
        self._feed(ev.Judged(tuple(ev.JudgedItem(key, Outcome.ok) for key in ids), tuple(dull) if refill else ()))
        self._go_on()

    def _on_train(self, command: ev.Train) -> None:
        trips = [self._trips[key] for group_id in command.group_ids for key in self._members[group_id]]
        learn, scenario = self._costs.learn, self._scenario
        tokens = sum(trip.length for trip in trips)
        seconds = learn.at(tokens) / scenario.learners + self._costs.publish
        self._call("learner", seconds, lambda: self._updated(command.group_ids, trips))

    def _updated(self, group_ids: Sequence[int], trips: Sequence[Trip]) -> None:
        self._handled("learner", 0)
        for trip in trips:
            for version, tokens in trip.parts:
                self._staleness[self._version - version] += tokens
        self._trained += len(trips)
        for group_id in group_ids:
            self._leave(group_id)
        self._version += 1
        self._committed_at = self._clock.now
        self._feed(ev.Updated(PolicyVersion(0, self._version), True))
        self._go_on()
        every = self._scenario.evaluate_every
        last = self._version >= self._scenario.updates
        if every and self._version % every == 0 and not last and not self._evaluating:
            self._evaluating = True
            self._call("evaluator", self._costs.evaluate, self._evaluated)

    def _evaluated(self) -> None:
        self._handled("evaluator", 0)
        self._evaluating = False

    def _leave(self, group_id: int) -> None:
        for key in self._members.pop(group_id):
            del self._trips[key]
        del self._unjudged[group_id]

    def _on_publish(self, command: ev.Publish) -> None:
        for name, box in self._boxes.items():
            box.weights = command.version.updates
            self._due[name] = None

    def _on_dropgroup(self, command: ev.DropGroup) -> None:
        self._leave(command.group_id)

    def _on_writecheckpoint(self, _: ev.WriteCheckpoint) -> None:
        self._clock.work("driver", self._costs.checkpoint)
        self._feed(ev.CheckpointWritten())

    def _on_note(self, _: ev.Note) -> None:
        """A round that ended without an update costs nothing by itself."""

    def _on_finish(self, _: ev.Finish) -> None:
        """The clock sees that the controller is finished."""


def _progress(trip: Trip, new: int) -> Progress:
    versions = [version for version, _ in trip.parts]
    oldest = PolicyVersion(0, min(versions)) if versions else None
    reason = FinishReason.stop if trip.length >= trip.total else None
    return Progress(trip.trajectory_id, 0, new, trip.length, oldest, reason, len(versions), len(set(versions)))

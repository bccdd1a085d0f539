"""A simulated world around the controller: fake generators, judges and a learner, and chaos by a seed.

The world keeps its own record of every token's version and checks every command against it, so what the
controller believes is never asked. Whatever is under way may come next: answers arrive late, out of order
between actors, or after their sender was declared dead.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from actors.controller import Controller
from engine.config.schedule import InFlight, ScheduleConfig, Straggler
from engine.records import event as ev
from engine.records.codec import decode, encode
from engine.records.trajectory import FinishReason, Outcome
from engine.records.version import PolicyVersion, staleness_versions
from engine.records.work import Progress

MAX_EVENTS = 20_000
LEASE_S = 10.0


@dataclass
class Job:
    """A trajectory in a generator, with the versions of the tokens sampled there."""

    trajectory_id: int
    left: int
    tokens: list[PolicyVersion] = field(default_factory=list)


@dataclass
class Answer:
    """What a generator says: its version, and (job, finished) of what left it."""

    version: PolicyVersion
    items: list[tuple[Job, bool]]


class FakeGenerator:
    """Slots, a queue and a mailbox; takes weights, cuts, admits and decodes in this order."""

    def __init__(self, name: str, version: PolicyVersion, slots: int, schedule: ScheduleConfig) -> None:
        self.name = name
        self.version = version
        self.joined = self.dead = self.hung = False
        self.mail: list[Job] = []
        self.weights: PolicyVersion | None = None
        self.cut = False
        self.answer: Answer | None = None
        self._staged: PolicyVersion | None = None
        self._queue: deque[Job] = deque()
        self._open: list[Job] = []
        self._slots = slots
        self._drain = schedule.in_flight is InFlight.finish
        self._budget = schedule.cut_tokens

    @property
    def empty(self) -> bool:
        """It holds no trajectory, and none is on the way."""
        return not (self.mail or self._queue or self._open or (self.answer and self.answer.items))

    @property
    def wanted(self) -> bool:
        """There is something to do."""
        return bool(self.mail or self._queue or self._open or self.weights or self._staged or self.cut)

    def advance(self, steps: int) -> None:
        """Obey the mailbox, sample so many tokens per slot, leave an answer."""
        self._staged, self.weights = self.weights or self._staged, None
        items: list[tuple[Job, bool]] = []
        if not (self._drain and self._open):
            self._swap()
        if self.cut:
            items = [(job, False) for job in (*self._open, *self._queue)]
            self._open.clear()
            self._queue.clear()
            self._swap()
            steps, self.cut = 0, False
        self._queue.extend(self.mail)
        self.mail = []
        for _ in range(steps):
            self._decode(items)
        self.answer = Answer(self.version, items)

    def _swap(self) -> None:
        if self._staged is not None:
            self.version, self._staged = self._staged, None

    def _decode(self, items: list[tuple[Job, bool]]) -> None:
        if not self._open:
            self._swap()
        while self._staged is None and self._queue and len(self._open) < self._slots:
            self._open.append(self._queue.popleft())
        for job in list(self._open):
            job.tokens.append(self.version)
            job.left -= 1
            if job.left == 0 or len(job.tokens) == self._budget:
                self._open.remove(job)
                items.append((job, job.left == 0))


@dataclass
class Books:
    """What really happened: all of it that survives in a checkpoint."""

    version: PolicyVersion = PolicyVersion(0, 0)
    members: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Outstanding groups."""
    group_of: dict[int, int] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)
    """Tokens to a trajectory's end."""
    tokens: dict[int, list[PolicyVersion]] = field(default_factory=dict)
    judged: set[int] = field(default_factory=set)
    issued: int = 0
    trained: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    quarantined: set[str] = field(default_factory=set)
    train_log: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)


class World:
    """Runs a controller to its end, doing at every turn any of the things that could happen next."""

    def __init__(self, seed: int, schedule: ScheduleConfig, *, k: int = 2, updates: int = 3,
                 generators: int = 1, checkpoint_every: int = 0, chaos: int = 0, no_spread: float = 0.0,
                 judge_fails: float = 0.0, max_tokens: int = 6, num_prompts: int = 8) -> None:
        self.rng = random.Random(seed)
        self.schedule = schedule
        self.k, self.updates, self.checkpoint_every = k, updates, checkpoint_every
        self.num_generators, self.slots = generators, self.rng.randint(1, 4)
        self.chaos, self.no_spread, self.judge_fails = chaos, no_spread, judge_fails
        self.max_tokens, self.num_prompts = max_tokens, num_prompts
        self.books = Books()
        self.lives: list[tuple[bytes | None, list[bytes], list[list[ev.Command]]]] = []
        self.saved: tuple[bytes, Books] | None = None
        self.now, self.incarnations, self.events, self.stop_sent = 0.0, 0, 0, False
        self._begin(None)

    def _begin(self, state: bytes | None) -> None:
        """A life of the run: fresh, or from a checkpoint."""
        self.lives.append((state, [], []))
        self.controller = self.new_controller(state)
        if state is not None:
            self.books.version = self.books.version.forked()
        self.generators: dict[str, FakeGenerator] = {}
        self.unreported: list[str] = []
        self.draws: list[int] = []
        self.judgements: list[tuple[int, ...]] = []
        self.learning: tuple[int, ...] | None = None
        self.holder: dict[int, str] = {}
        self.in_judgement: set[int] = set()
        self.spent: set[int] = set()
        self.writing = self.over = self.stopped = False
        for _ in range(self.num_generators):
            self._start_generator()

    def new_controller(self, state: bytes | None) -> Controller:
        """As every life has it."""
        controller = Controller(
            self.schedule, samples_per_prompt=self.k, updates=self.updates, lease_s=LEASE_S,
            checkpoint_every=self.checkpoint_every, num_generators=self.num_generators,
        )
        if state is not None:
            controller.load_state_dict(decode(state))
        return controller

    def _start_generator(self) -> None:
        name = f"generator#{self.incarnations}"
        self.incarnations += 1
        self.generators[name] = FakeGenerator(name, self.books.version, self.slots, self.schedule)

    # ---- time ----------------------------------------------------------------------------------

    def run(self) -> World:
        """Until the last update is committed, over all lives."""
        while not self.over:
            choices = self._moves()
            assert choices or self.chaos, "deadlock: nothing is under way and the run is not finished"
            if self.chaos and (not choices or self.rng.random() < 0.05):
                self.chaos -= 1
                choices = self._mishaps()
            self.rng.choice(choices)()
            if self.over and self.stopped:
                self._crash()
        assert self.books.version.updates == self.updates
        return self

    def _moves(self) -> list[Callable[[], None]]:
        moves: list[Callable[[], None]] = []
        for one in self.generators.values():
            if one.hung or one.dead:
                continue
            if not one.joined:
                moves.append(lambda one=one: self._join(one))
            elif one.answer is not None:
                moves.append(lambda one=one: self._deliver(one))
            elif one.wanted:
                moves.append(lambda one=one: one.advance(self.rng.randint(1, 3)))
        moves += [lambda name=name: self._report_loss(name) for name in self.unreported]
        moves += [lambda i=i: self._draw(i) for i in range(len(self.draws))]
        moves += [lambda i=i: self._judge(i) for i in range(len(self.judgements))]
        if self.learning is not None:
            moves.append(self._learn)
        if self.writing:
            moves.append(self._written)
        if any(one.hung and one.joined and not one.empty for one in self.generators.values()):
            moves.append(self._tick)
        return moves

    def _mishaps(self) -> list[Callable[[], None]]:
        living = [one for one in self.generators.values() if not one.dead]
        mishaps: list[Callable[[], None]] = [lambda one=one: self._kill(one) for one in living]
        mishaps += [lambda one=one: setattr(one, "hung", True) for one in living if not one.empty]
        mishaps.append(self._tick)
        if self.saved is not None:
            mishaps.append(self._crash)
        if not self.stop_sent:
            mishaps.append(self._stop)
        return mishaps

    def feed(self, event: ev.Event) -> None:
        """One event into the controller; every command is checked and carried out."""
        self.events += 1
        assert self.events < MAX_EVENTS, "the run does not come to its end"
        _, events, commands = self.lives[-1]
        answer = self.controller.step(event)
        events.append(encode(event))
        commands.append(answer)
        for command in answer:
            getattr(self, "_on_" + type(command).__name__.lower())(command)
        self._check_books()

    # ---- what may happen -----------------------------------------------------------------------

    def _join(self, one: FakeGenerator) -> None:
        one.joined = True
        self.feed(ev.GeneratorJoined(one.name, one.version))

    def _deliver(self, one: FakeGenerator) -> None:
        """An answer arrives, perhaps after its sender was given up: then nothing of it is kept."""
        answer, one.answer = one.answer, None
        assert answer is not None
        items = []
        for job, finished in answer.items:
            key = job.trajectory_id
            if self.holder.get(key) == one.name:
                del self.holder[key]
                items.append(self._keep(job, finished))
        if one.dead and not one.wanted:
            self.generators.pop(one.name, None)
        self.feed(ev.Progressed(one.name, answer.version, tuple(items)))

    def _keep(self, job: Job, finished: bool) -> Progress:
        key, books = job.trajectory_id, self.books
        books.tokens[key] += job.tokens
        books.left[key] -= len(job.tokens)
        tokens = books.tokens[key]
        if job.tokens and not finished and self.schedule.rounds:
            self.spent.add(key)
        oldest = min(tokens, key=lambda v: v.updates, default=None)
        reason = FinishReason.stop if finished else None
        return Progress(key, 0, len(job.tokens), len(tokens), oldest, reason, 1, len(set(tokens)))

    def _judge(self, index: int) -> None:
        ids = self.judgements.pop(index)
        self.in_judgement -= set(ids)
        items, books = [], self.books
        for key in ids:
            fails = self.rng.random() < self.judge_fails
            items.append(ev.JudgedItem(key, Outcome.timeout if fails else Outcome.ok))
            if not fails and key in books.group_of:
                books.judged.add(key)
        groups = sorted({books.group_of[key] for key in ids if key in books.group_of})
        whole = [g for g in groups if books.judged.issuperset(books.members[g])]
        dull = tuple(g for g in whole if self.rng.random() < self.no_spread)
        self.feed(ev.Judged(tuple(items), dull))

    def _learn(self) -> None:
        assert self.learning is not None
        books = self.books
        committed = self.rng.random() < 0.9
        self._leave(self.learning, books.trained)
        self.learning = None
        if committed:
            books.version = books.version.next()
        self.feed(ev.Updated(books.version, committed))

    def _draw(self, index: int) -> None:
        pool = [p for p in (f"p{i}" for i in range(self.num_prompts)) if p not in self.books.quarantined]
        self.feed(ev.Drawn(tuple(self.rng.choice(pool) for _ in range(self.draws.pop(index)))))

    def _written(self) -> None:
        self.writing = False
        self.feed(ev.CheckpointWritten())

    def _tick(self) -> None:
        self.now += self.rng.uniform(0.2, 1.5) * LEASE_S
        if self.controller.leases_expired(self.now):
            self.feed(ev.Ticked(self.now))
        else:
            assert self.controller.step(ev.Ticked(self.now)) == [], "an idle tick is not recorded"

    def _kill(self, one: FakeGenerator) -> None:
        """It answers no more, but what it said last may be still on the way."""
        one.dead = True
        if one.joined:
            self.unreported.append(one.name)
            if one.answer is not None and self.rng.random() < 0.5:
                self.late.append(one)
        else:
            del self.generators[one.name]
            self._start_generator()

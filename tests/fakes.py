"""A simulated world around the controller: fake generators, judges and a learner, and chaos by a seed.

The world keeps its own record of every token's version and checks every command against it, so what the
controller believes is never asked. Whatever is under way may come next: answers arrive late, out of order
between actors, or after their sender was declared dead.
"""

from __future__ import annotations

import copy
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from actors.controller import Controller
from actors.window import feasible
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
        self.offered: PolicyVersion | None = None
        """Published, and on its way through the channel."""
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

    def receive(self) -> None:
        """Offered weights reach the mailbox."""
        self.weights, self.offered = self.offered, None

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

    version: PolicyVersion = field(default_factory=lambda: PolicyVersion(0, 0))
    members: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Outstanding groups."""
    group_of: dict[int, int] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)
    """Tokens to a trajectory's end."""
    tokens: dict[int, list[PolicyVersion]] = field(default_factory=dict)
    oldest: dict[int, int] = field(default_factory=dict)
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
                 judge_fails: float = 0.0, commit_fails: float = 0.0, max_tokens: int = 6,
                 num_prompts: int = 8) -> None:
        self.rng = random.Random(seed)
        self.schedule = schedule
        self.k, self.updates, self.checkpoint_every = k, updates, checkpoint_every
        self.num_generators, self.slots = generators, self.rng.randint(1, 4)
        self.chaos, self.no_spread, self.judge_fails = chaos, no_spread, judge_fails
        self.commit_fails, self.max_tokens, self.num_prompts = commit_fails, max_tokens, num_prompts
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
        self.places = self.num_generators
        """Generators that there is room for."""
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
            assert choices, "deadlock: nothing is under way and the run is not finished"
            if self.chaos and self.rng.random() < 0.05:
                self.chaos -= 1
                choices = self._mishaps()
            self.rng.choice(choices)()
            if self.over and self.stopped:
                self._crash()
        assert self.books.version.updates == self.updates
        return self

    def _moves(self) -> list[Callable[[], None]]:
        moves: list[Callable[[], None]] = []
        joins: list[Callable[[], None]] = []
        for one in self.generators.values():
            if one.offered is not None and not (one.dead or one.hung):
                moves.append(one.receive)
            if one.answer is not None and not one.hung:
                moves.append(partial(self._deliver, one))
            elif one.dead or one.hung:
                continue
            elif not one.joined:
                joins.append(partial(self._join, one))
            elif one.wanted:
                moves.append(partial(self._advance, one))
        moves += [partial(self._report_loss, name) for name in self.unreported]
        moves += [partial(self._draw, i) for i in range(len(self.draws))]
        moves += [partial(self._judge, i) for i in range(len(self.judgements))]
        if self.learning is not None:
            moves.append(self._learn)
        if self.writing:
            moves.append(self._written)
        if any(one.hung and one.joined and not one.empty for one in self.generators.values()):
            moves.append(self._tick)
        # A start takes long, so that versions go by meanwhile.
        return joins if joins and (not moves or self.rng.random() < 0.1) else moves

    def _mishaps(self) -> list[Callable[[], None]]:
        living = [one for one in self.generators.values() if not one.dead]
        mishaps: list[Callable[[], None]] = [partial(self._kill, one) for one in living]
        mishaps += [partial(setattr, one, "hung", True) for one in living if not one.empty]
        mishaps.append(self._tick)
        if self.saved is not None:
            mishaps.append(self._crash)
        if not self.stop_sent:
            mishaps.append(self._stop)
        return mishaps

    def feed(self, event: ev.Event) -> list[ev.Command]:
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
        return answer

    # ---- what may happen -----------------------------------------------------------------------

    def _join(self, one: FakeGenerator) -> None:
        one.joined = True
        self.feed(ev.GeneratorJoined(one.name, one.version))

    def _advance(self, one: FakeGenerator) -> None:
        one.advance(self.rng.randint(1, 3))

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
        self.feed(ev.Progressed(one.name, answer.version, tuple(items)))

    def _keep(self, job: Job, finished: bool) -> Progress:
        key, books = job.trajectory_id, self.books
        books.tokens[key] += job.tokens
        books.left[key] -= len(job.tokens)
        tokens = books.tokens[key]
        if job.tokens and not finished and self.schedule.rounds:
            self.spent.add(key)
        oldest = min(tokens, key=lambda v: v.updates, default=None)
        if oldest is not None:
            books.oldest[key] = oldest.updates
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
        committed = self.rng.random() >= self.commit_fails
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
        answer = self.feed(ev.Ticked(self.now))
        assert not answer or isinstance(answer[0], ev.Restart), "whatever could be done was done before"

    def _kill(self, one: FakeGenerator) -> None:
        """It samples no more, but what it said last may be still on the way."""
        one.dead, one.hung = True, False
        self.unreported.append(one.name)

    def _report_loss(self, name: str) -> None:
        self.unreported.remove(name)
        self._forget_holder(name)
        room = self.places == 1 or self.rng.random() < 0.8
        if room:
            self._start_generator()
        self.feed(ev.GeneratorLost(name))
        if not room:
            self.places -= 1
            self.feed(ev.NobodyFollows(name))

    def _forget_holder(self, name: str) -> None:
        self.holder = {key: holder for key, holder in self.holder.items() if holder != name}

    def _stop(self) -> None:
        self.stop_sent = True
        self.feed(ev.StopRequested())

    def _crash(self) -> None:
        """Everything dies; the next life goes on from the newest checkpoint."""
        assert self.saved is not None
        state, books = self.saved
        self.books = copy.deepcopy(books)
        self._begin(state)

    # ---- commands ------------------------------------------------------------------------------

    @property
    def _frozen(self) -> bool:
        """With rounds, and so with bound 0, nothing is issued while the learner trains."""
        return self.schedule.rounds and self.learning is not None

    def _on_draw(self, command: ev.Draw) -> None:
        assert command.count > 0
        assert not self._frozen
        self.draws.append(command.count)

    def _on_admit(self, command: ev.Admit) -> None:
        books = self.books
        assert not self._frozen
        assert len(command.trajectory_ids) == self.k
        assert command.group_id not in books.members.keys() | books.trained | books.dropped
        assert min(command.trajectory_ids) == books.issued, "ids come from one counter"
        assert command.prompt_id not in books.quarantined or self.draws
        books.issued += self.k
        books.members[command.group_id] = command.trajectory_ids
        for key in command.trajectory_ids:
            books.group_of[key] = command.group_id
            books.left[key] = self.rng.randint(1, self.max_tokens)
            books.tokens[key] = []

    def _on_dispatch(self, command: ev.Dispatch) -> None:
        one = self.generators[command.generator]
        assert not self._frozen
        assert one.joined
        assert one.name in self.controller.seats.by_name
        for key in command.trajectory_ids:
            assert key not in self.holder, "somebody holds it"
            assert self.books.left[key] > 0, "it is finished"
            assert key not in self.spent, "its budget of this round is spent"
            self.holder[key] = one.name
            one.mail.append(Job(key, self.books.left[key]))

    def _on_judge(self, command: ev.Judge) -> None:
        ids = set(command.trajectory_ids)
        assert not ids & (self.books.judged | self.in_judgement)
        assert all(self.books.left[key] == 0 for key in ids)
        self.in_judgement |= ids
        self.judgements.append(command.trajectory_ids)

    def _on_train(self, command: ev.Train) -> None:
        books, schedule = self.books, self.schedule
        assert self.learning is None
        assert list(command.group_ids) == sorted(set(command.group_ids))
        assert schedule.fewest_groups <= len(command.group_ids) <= schedule.batch_groups
        for group_id in command.group_ids:
            assert books.judged.issuperset(books.members[group_id]), "the group is not complete"
            for version in (v for key in books.members[group_id] for v in books.tokens[key]):
                stale = staleness_versions(books.version, version)
                assert schedule.on_straggler is Straggler.mask or stale <= schedule.max_staleness
        books.train_log.append((books.version.updates, command.group_ids))
        self.learning = command.group_ids
        self.spent.clear()

    def _on_publish(self, command: ev.Publish) -> None:
        assert command.version == self.books.version
        for one in self.generators.values():
            one.offered = command.version

    def _on_dropgroup(self, command: ev.DropGroup) -> None:
        members = self.books.members[command.group_id]
        assert command.group_id not in (self.learning or ())
        assert not self.holder.keys() & set(members), "somebody still samples it"
        if command.quarantine:
            self.books.quarantined.add(command.prompt_id)
            self.num_prompts += 1
        self._leave((command.group_id,), self.books.dropped)

    def _leave(self, group_ids: tuple[int, ...], where: set[int]) -> None:
        for group_id in group_ids:
            where.add(group_id)
            for key in self.books.members.pop(group_id):
                for book in (self.books.group_of, self.books.left, self.books.tokens):
                    del book[key]
                self.books.judged.discard(key)
                self.books.oldest.pop(key, None)

    def _on_cutall(self, command: ev.CutAll) -> None:
        self.generators[command.generator].cut = True

    def _on_writecheckpoint(self, _: ev.WriteCheckpoint) -> None:
        books = self.books
        assert not self.holder
        assert not self.draws
        assert self.learning is None
        assert not self.in_judgement & books.group_of.keys()
        self.saved = encode(self.controller.state_dict()), copy.deepcopy(books)
        self.spent.clear()
        self.writing = True

    def _on_restart(self, command: ev.Restart) -> None:
        one = self.generators[command.generator]
        if not one.dead:
            self._kill(one)
        self._forget_holder(one.name)

    def _on_note(self, _: ev.Note) -> None:
        assert self.schedule.rounds
        self.spent.clear()

    def _on_finish(self, command: ev.Finish) -> None:
        self.over, self.stopped = True, command.stopped
        assert command.stopped or self.books.version.updates == self.updates

    def _check_books(self) -> None:
        """The controller's roster is the world's, and the window is never overfull."""
        books, schedule = self.books, self.schedule
        assert self.controller.version == books.version
        assert self.controller.roster.groups.keys() == books.members.keys()
        known = len(books.members) + len(books.trained) + len(books.dropped)
        assert books.issued == self.k * known, "issued = outstanding + trained + dropped"
        window = (schedule.max_staleness + 1) * schedule.batch_groups
        assert len(books.members) + sum(self.draws) <= window
        ages: Counter[int] = Counter()
        for group_id in books.members.keys() - set(self.learning or ()):
            believed = self.controller.roster.groups[group_id].oldest
            ages[believed] += 1
            sampled = [books.oldest[key] for key in books.members[group_id] if key in books.oldest]
            assert believed <= min(sampled, default=believed), "a group is older than the controller knows"
        if schedule.on_straggler is Straggler.wait:
            following = books.version.updates + (self.learning is not None)
            bound, batch = schedule.max_staleness, schedule.batch_groups
            assert feasible(ages, following, bound, batch), "more groups than updates left for them"

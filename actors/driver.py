"""The driver: feeds the controller one event at a time and has its commands carried out.

It holds no policy of its own. Quick questions to replay are asked and waited for; long calls - sampling,
judging, learning, evaluating - are left open, each with a deadline, and whichever ends first is the next
event. Who carries out what: ``generation``, ``judging``, ``training`` and ``succession`` beside this file.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actors.cluster import Cluster, Pending, ask
from actors.controller import Controller
from actors.evaluator import Evaluator
from actors.generation import Generation
from actors.judging import Judging
from actors.observer import Observer
from actors.study import num_updates, study
from actors.succession import Succession
from actors.supervisor import Supervisor
from actors.tracing import Tracer
from actors.training import Training
from actors.turns import Turns
from engine.config.run import Only, RunConfig
from engine.errors import ActorError
from engine.models.tokenizer import PolicyTokenizer
from engine.prompts.draw import PromptDraw
from engine.prompts.prompt_set import PromptSet
from engine.records import arrival
from engine.records import event as ev
from engine.records.codec import encode
from engine.replay.ledger import Ledger
from engine.run_folder import RunFolder
from engine.trace import now as wall_clock

POLL_S = 0.5
STOP_GRACE_S = 6.0


@dataclass(slots=True)
class Call:
    """A call that is out: what to do with its answer, and until when it may take."""

    pending: Pending
    deadline: float
    answer: Callable[[Any], None]
    sent: float
    """Wall clock, for the trace."""


class Driver:
    """One life of a run."""

    def __init__(self, config: RunConfig, cluster: Cluster, supervisor: Supervisor, folder: RunFolder,
                 prompts: PromptSet, tokenizer: PolicyTokenizer, observer: Observer,
                 should_stop: Callable[[], bool]) -> None:
        self.config = config
        self.cluster = cluster
        self.supervisor = supervisor
        self.observer = observer
        self.prompts = prompts
        self.tokenizer = tokenizer
        self.ledger = Ledger(folder.ledger_file)
        self.draw = PromptDraw(prompts.train, config.prompts, config.seed)
        self.controller = Controller(
            config.schedule, samples_per_prompt=config.rollout.samples_per_prompt,
            updates=self._num_updates(), checkpoint_every=config.learning.checkpoint_every,
            lease_s=config.cluster.call_deadline_s, max_judge_failures=config.reward.max_retries,
            num_generators=config.generator.num_generators,
        )
        self.arrivals = folder.arrivals_file.open("ab")
        self.tracer = Tracer(config, folder, self.controller)
        self.generation = Generation(self)
        self.judging = Judging(self)
        self.training = Training(self)
        self.evaluator = Evaluator(self)
        self.turns, self.succession = Turns(self), Succession(self)
        self.write_checkpoint: Callable[[], None] | None = None
        self.stopped = False
        self.should_stop = should_stop
        self._stop_deadline = float("inf")
        self._stop_grace_s = STOP_GRACE_S
        self._calls: list[Call] = []
        self._next_tick = 0.0
        self._inbox: deque[ev.Event] = deque()
        self._draining = False
        self._carry_out: dict[type, Callable[[Any], None]] = {
            ev.Draw: self._draw, ev.Admit: self.generation.admit, ev.Dispatch: self.generation.dispatch,
            ev.CutAll: self.generation.cut, ev.Restart: self._restart, ev.Judge: self.judging.judge,
            ev.Train: self.training.train, ev.Publish: self.training.published,
            ev.DropGroup: self.training.drop, ev.WriteCheckpoint: self._checkpoint,
            ev.Note: lambda note: self.observer.say(note.text), ev.Finish: self._finish,
        }

    def _num_updates(self) -> int:
        train, updates = self.config.train, self.config.learning.updates
        return num_updates(train.rollouts, updates) if train.only is Only.learn else updates

    @property
    def time_is_up(self) -> bool:
        """All the time that training was given is used; asked between updates."""
        limit = self.config.learning.max_seconds
        return bool(limit) and self.observer.train_seconds >= limit

    # ---- the loop ------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Nothing is left to do but to end well."""
        return self.controller.finished or self.training.recorded_all

    def run(self) -> None:
        """Until the run is over.

        Raises:
            ActorError: the learner or replay died, or restarts ran out; resume from the checkpoint.
        """
        self.tracer.begin()
        if self.config.train.only is Only.learn:
            study(self)
            return
        for name in self.supervisor.generators:
            self.generation.welcome(name)
        while not self.over:
            self.heed_stop()
            self._turn()
        for name in self.succession.coming:
            if name.startswith("generator"):
                self.forget(name)
        self.wait_for("generator-", "learner")

    def wait_for(self, *prefixes: str, unless_stopped: bool = False) -> None:
        """Take the answers that are still out from actors so named.

        Raises:
            ActorError: one of them does not answer.
        """
        while any(call.pending.actor.startswith(prefixes) for call in self._calls):
            if unless_stopped and self.should_stop():
                return
            self._turn()

    def _turn(self) -> None:
        if not self._calls:
            raise ActorError("driver", "waiting", "nothing is under way and the run is not finished")
        done = self._next_answer()
        now = self._now()
        if done is None or now >= self._next_tick:
            self._tick(now)
        if done is None:
            return
        place = next((i for i, call in enumerate(self._calls) if call.pending is done), None)
        if place is None:
            return  # its actor was given up by that very tick
        call = self._calls.pop(place)
        self.note(arrival.Answered(place))
        try:
            value = self._outcome(call)
        except ActorError as error:
            self.died(error)
            return
        with self.tracer.handling(done.actor, done.method, call.sent, value):
            call.answer(value)

    def _next_answer(self) -> Pending | None:
        return self.cluster.wait([call.pending for call in self._calls], POLL_S)

    def _outcome(self, call: Call) -> Any:
        return self.cluster.result(call.pending)

    def _now(self) -> float:
        return time.monotonic()

    def _tick(self, now: float) -> None:
        """Let the controller look at its leases, and see whether a call is overdue."""
        self._next_tick = now + POLL_S
        self.feed(ev.Ticked(now))
        late = self._overdue(now)
        if late is not None:
            waited_s = wall_clock() - late.sent
            self.died(ActorError(late.pending.actor, late.pending.method, f"no answer in {waited_s:.0f} s"))

    def _overdue(self, now: float) -> Call | None:
        overdue = [call for call in self._calls if call.deadline < now]
        # What is there already was only not looked at: replacing an actor takes a while.
        return next((call for call in overdue if self.cluster.wait([call.pending], 0.0) is None), None)

    def heed_stop(self) -> None:
        """Tell the controller of a wish to stop; work gets a little time to come to rest.

        Raises:
            ActorError: that time is over.
        """
        if self._stop_deadline < self._now():
            raise ActorError("driver", "stopping", "work did not come to rest in time; the newest checkpoint "
                             "stands")
        if self.should_stop() and not self.stopped:
            self.stopped = True
            self._stop_deadline = self._now() + self._stop_grace_s
            self.observer.say("stopping: a checkpoint is written first")
            self.feed(ev.StopRequested())

    def feed(self, event: ev.Event) -> None:
        """Put an event into the inbox, and empty it: step by step, command by command."""
        self._inbox.append(event)
        if self._draining:
            return
        self._draining = True
        try:
            while self._inbox:
                event = self._inbox.popleft()
                self.note(event)
                for command in self.controller.step(event):
                    self.tracer.saw(command)
                    self._carry_out[type(command)](command)
        finally:
            self._draining = False
        if not self.over:
            self.generation.go_on()

    def note(self, entry: Any) -> None:
        """Write down what arrived; with this journal the run can be repeated."""
        self.arrivals.write(encode(entry))

    def later(self, answer: Callable[[Any], None], name: str, method: str, *arguments: Any,
              deadline_s: float | None = None) -> None:
        """Ask an actor; ``answer`` receives what it says, once it does."""
        pending = self.cluster.call(name, method, *arguments)
        allowed_s = self.succession.deadline_s(name) if deadline_s is None else deadline_s
        self._calls.append(Call(pending, self._now() + allowed_s, answer, wall_clock()))
        self.tracer.called(name)

    def replay(self, method: str, *arguments: Any) -> Any:
        """Ask replay and wait for its answer."""
        with self.tracer.part(f"replay: {method}"):
            return ask(self.cluster, "replay", method, *arguments,
                       deadline_s=self.config.cluster.call_deadline_s)

    def died(self, error: ActorError) -> None:
        """An actor is gone, see :meth:`Succession.died`."""
        self.succession.died(error)

    def replace(self, error: ActorError) -> str:
        """Have the supervisor start a successor; its name."""
        return self.supervisor.replace(error)

    def forget(self, actor: str) -> None:
        """Nobody waits for an actor that died."""
        self._calls = [call for call in self._calls if call.pending.actor != actor]
        self.tracer.left(actor)

    # ---- commands of its own -------------------------------------------------------------------

    def _draw(self, command: ev.Draw) -> None:
        drawn = self.draw.draw(command.count, self.controller.version.updates)
        self.feed(ev.Drawn(tuple(prompt.prompt_id for prompt in drawn)))

    def _restart(self, command: ev.Restart) -> None:
        self.died(ActorError(command.generator, "sampling", "its lease expired"))

    def _checkpoint(self, _: ev.WriteCheckpoint) -> None:
        self.ledger.check()
        assert self.write_checkpoint is not None, "the launcher injects it"
        with self.tracer.part("checkpoint"):
            self.write_checkpoint()
        self.feed(ev.CheckpointWritten())

    def _finish(self, command: ev.Finish) -> None:
        self.stopped = command.stopped

    def close(self) -> None:
        """Close the journals."""
        self.arrivals.close()
        self.tracer.close()
        self.ledger.close()

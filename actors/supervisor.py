"""The supervisor: starts actors, and alone restarts them, within a limit.

A generator or a judge that dies is replaced under a new incarnation name, so that nothing its
predecessor still says is believed; where the cluster has no room for the new one, the others go on without
it, if it was a generator and not the last. The learner and replay hold what cannot be made again; their death
ends this life of the run, and the next one resumes from the newest checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.cluster import Cluster, ask
from actors.generator import Generator
from actors.judge import Judge
from actors.learner import Learner
from actors.placement import SAMPLERS
from actors.replay import Replay
from engine.config.cluster import WeightChannelKind
from engine.config.rollout import GeneratorKind
from engine.config.run import Only, RunConfig
from engine.errors import ActorError, ClusterError

REPLACEABLE = (*SAMPLERS, "judge")


def next_incarnation(actor: str) -> str:
    """The name that usually follows.

    Example:
        >>> next_incarnation("generator-0#1")
        'generator-0#2'
    """
    role, _, number = actor.partition("#")
    return f"{role}#{int(number) + 1}"


def first_answer_s(config: RunConfig, actor: str) -> float:
    """Seconds that an actor may take for its first answer: vLLM's engine may compile before it."""
    holds_vllm = config.generator.kind is GeneratorKind.vllm and actor.startswith(SAMPLERS)
    return config.cluster.start_deadline_s + (config.generator.vllm.start_timeout_s if holds_vllm else 0.0)


class Restarts:
    """At most so many restarts within a window of time, over all actors and lives of a run."""

    def __init__(self, limit: int, window_s: float, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._window_s = window_s
        self._clock = clock
        self._times: deque[float] = deque()
        self.total = 0

    def allow(self, error: ActorError) -> None:
        """Count one restart.

        Raises:
            ActorError: too many of them; the run gives up.
        """
        now = self._clock()
        while self._times and self._times[0] < now - self._window_s:
            self._times.popleft()
        if len(self._times) >= self._limit:
            raise ActorError(
                error.actor, error.during,
                f"{error.detail}; {self._limit} restarts within {self._window_s:.0f} s were used up "
                "(cluster.max_restarts)",
            ) from error
        self._times.append(now)
        self.total += 1


class Supervisor:
    """Knows how every actor is made, and under which name it lives now."""

    def __init__(self, cluster: Cluster, config: RunConfig, folder: str, run_id: str,
                 written: Mapping[str, str], restarts: Restarts) -> None:
        """Nothing is started yet.

        Args:
            cluster: that the actors live on.
            config: of the run.
            folder: Hugging Face folder of the first weights.
            run_id: names the weight channel.
            written: folders that the learner writes to, by the names that it has for them.
            restarts: counts replacements.
        """
        self._cluster = cluster
        self._config = config
        self._run_folder = Path(config.run.dir).expanduser().absolute()
        self._folder = folder
        self._run_id = run_id
        self._written = written
        self._restarts = restarts
        self._incarnations: dict[str, int] = {}
        self._home = ""
        """Machine of the learner."""
        self.generators: list[str] = []
        self.judge = ""
        self.evaluator = ""
        self.refusal = ""
        """Why the last generator that nobody follows has no successor."""

    def start_all(self) -> None:
        """Start every actor and wait until each has answered once.

        Raises:
            ActorError: one did not answer in time, see :func:`first_answer_s`.
            ClusterError: there is no room for them, or they live on machines that do not share what they must.
        """
        config = self._config
        shared = {"config": config, "folder": self._folder, "run_id": self._run_id}
        samples = config.train.only is not Only.learn
        roles = [f"generator-{i}" for i in range(config.generator.num_generators)] if samples else []
        self._cluster.reserve(["replay", "learner", "judge", "evaluator", *roles])
        self._cluster.start("replay", Replay, {"config": config})
        self._cluster.start("learner", Learner, {**shared, **self._written},
                            threads=config.cluster.threads.learner)
        self.judge = self._start("judge")
        self.evaluator = self._start("evaluator")
        self.generators = [self._start(role) for role in roles]
        for name in ("replay", "learner", self.judge, self.evaluator, *self.generators):
            ask(self._cluster, name, "metrics", deadline_s=first_answer_s(config, name))
        self._home, sees_it = self._cluster.look("learner", self._run_folder)
        if not sees_it:
            raise ClusterError(
                f"the learner lives on machine {self._home}, where run.dir={config.run.dir!r} is missing: put it "
                "on a file system that all machines share, checkpoints are written there"
            )
        self.check_machines([self.evaluator, *self.generators])

    def check_machines(self, samplers: Sequence[str]) -> None:
        """Refuse what works on one machine only where there are several.

        Raises:
            ClusterError: one of these lives on another machine than the learner, which it cannot.
            ActorError: it died.
        """
        channel = self._config.weights.channel
        if channel not in (WeightChannelKind.shared_memory, WeightChannelKind.cuda_ipc):
            return
        for name in samplers:
            machine, _ = self._cluster.look(name, self._run_folder)
            if machine != self._home:
                raise ClusterError(
                    f"{name} lives on machine {machine}, the learner on {self._home}: weights.channel={channel.value} "
                    "ends at the border of a machine, choose weights=object_store"
                )

    def _start(self, role: str) -> str:
        self._incarnations[role] = self._incarnations.get(role, 0) + 1
        name = f"{role}#{self._incarnations[role]}"
        config, threads = self._config, self._config.cluster.threads
        if role == "judge":
            self._cluster.start(name, Judge, {"config": config, "folder": self._folder})
            return name
        evaluates = role == "evaluator"
        count = threads.evaluator if evaluates else threads.generator
        arguments: dict[str, Any] = {
            "config": config, "name": name, "folder": self._folder, "run_id": self._run_id,
            "slots": config.evaluation.slots if evaluates else config.generator.slots, "threads": count,
        }
        self._cluster.start(name, Generator, arguments, threads=count)
        return name

    def replaced(self, name: str) -> bool:
        """Whether a successor lives in this actor's place already."""
        role, _, number = name.partition("#")
        return bool(number) and int(number) < self._incarnations[role]

    def replace(self, error: ActorError, told: str | None = None) -> str:
        """End what is left of an actor and start its successor, whose first answer is not waited for.

        Room for it is, up to ``cluster.start_deadline_s`` where the node of its predecessor left. One that dies while
        it is started, since that node was leaving too, is replaced in its turn.

        Args:
            error: of its death.
            told: the successor in the run that is repeated, empty for nobody; None: whoever comes to live.

        Returns:
            The new name; empty for a generator without which the others go on, since there is no room.

        Raises:
            ActorError: it is not replaceable, or the limit of restarts is reached.
            ClusterError: there is no room for an actor without which nothing goes on.
        """
        role = error.actor.partition("#")[0]
        if not role.startswith(REPLACEABLE):
            raise error
        others = [name for name in self.generators if name != error.actor]
        if told:
            self._incarnations[role] = int(told.partition("#")[2]) - 1
        while True:
            self._restarts.allow(error)
            self._cluster.kill(error.actor)
            try:
                if told == "":
                    self._incarnations[role] += 1
                    raise ClusterError("the recorded run had no room for it")
                name = self._start(role)
                break
            except ActorError as again:
                error = again
            except ClusterError as refused:
                if not role.startswith("generator") or not others:
                    raise
                self.generators, self.refusal = others, str(refused)
                return ""
        if role == "judge":
            self.judge = name
            return name
        if role == "evaluator":
            self.evaluator = name
        else:
            self.generators = [name if old.partition("#")[0] == role else old for old in self.generators]
        return name

"""Several learners behind one name: whoever asks ``learner`` asks every rank, and hears rank 0.

The ranks of a learner compute together, so each must be asked the same in the same order. This is the one place
that knows; driver, training and checkpoints speak to ``learner`` as if it were one. The death or error of any rank
is one of the learner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actors.cluster import Cluster, Pending, ask
from engine.config.run import RunConfig

LEARNER = "learner"
_FIRST_ONLY = ("record",)
"""What rank 0 does alone."""


def with_learners(cluster: Cluster, config: RunConfig) -> Cluster:
    """The cluster, in which ``learner`` is as many actors as ``learning.num_learners``."""
    names = config.learning.learner_names
    return cluster if len(names) == 1 else LearnerGroup(cluster, names, config.cluster.start_deadline_s)


class _Answers:
    """What the ranks said so far to one question."""

    def __init__(self, members: Sequence[Pending]) -> None:
        self.members = list(members)
        """Whose answers are missing."""
        self.value: Any = None
        """Of rank 0."""
        self.error: Exception | None = None
        """The first that any of them met."""

    @property
    def done(self) -> bool:
        """An error needs no further answers: the other ranks may wait for the one that met it."""
        return self.error is not None or not self.members

    def take(self, cluster: Cluster, member: Pending) -> None:
        """Hear one rank."""
        self.members.remove(member)
        try:
            value = cluster.result(member)
        except Exception as error:  # noqa: BLE001 - kept for result()
            self.error = error
            return
        if member.actor == LEARNER:
            self.value = value


class LearnerGroup:
    """A cluster whose ``learner`` is several actors; all other names are passed on."""

    def __init__(self, cluster: Cluster, names: Sequence[str], start_deadline_s: float) -> None:
        """Wrap a cluster.

        Args:
            cluster: in which the ranks live.
            names: theirs, by rank.
            start_deadline_s: seconds that rank 0 may take to come up.
        """
        self._cluster = cluster
        self._names = list(names)
        self._start_deadline_s = start_deadline_s
        self._joined = False

    def reserve(self, actors: Sequence[str]) -> None:
        """Find places for all actors of a run, every rank among them."""
        others = [name for name in actors if name != LEARNER]
        self._cluster.reserve([*self._names, *others] if LEARNER in actors else others)

    def look(self, name: str, path: Path) -> tuple[str, bool]:
        """The machine that an actor lives on, and whether it sees this path; of ranks the first that does not."""
        if name != LEARNER:
            return self._cluster.look(name, path)
        found = [self._cluster.look(member, path) for member in self._names]
        return next((one for one in found if not one[1]), found[0])

    def start(self, name: str, factory: Callable[..., Any], arguments: dict[str, Any], *,
              threads: int = 1) -> None:
        """Make an actor, or every rank."""
        if name != LEARNER:
            self._cluster.start(name, factory, arguments, threads=threads)
            return
        self._joined = False
        for rank, member in enumerate(self._names):
            self._cluster.start(member, factory, {**arguments, "rank": rank}, threads=threads)

    def call(self, name: str, method: str, *arguments: Any) -> Pending:
        """Ask an actor, or every rank; before their first question the ranks are told where to meet."""
        if name != LEARNER:
            return self._cluster.call(name, method, *arguments)
        if method in _FIRST_ONLY:
            return self._cluster.call(LEARNER, method, *arguments)
        asked = [] if self._joined else self._join()
        asked += [self._cluster.call(member, method, *arguments) for member in self._names]
        return Pending(LEARNER, method, _Answers(asked))

    def _join(self) -> list[Pending]:
        address = ask(self._cluster, LEARNER, "meet", deadline_s=self._start_deadline_s)
        self._joined = True
        return [self._cluster.call(member, "join", address) for member in self._names]

    def wait(self, pending: Sequence[Pending], timeout_s: float) -> Pending | None:
        """The first that is done, or None when the time is over; of the ranks all must be."""
        deadline = time.monotonic() + timeout_s
        while True:
            for one in pending:
                if isinstance(one.token, _Answers) and one.token.done:
                    return one
            open_ones: dict[int, tuple[Pending, Pending]] = {}
            for one in pending:
                members = one.token.members if isinstance(one.token, _Answers) else [one]
                open_ones |= {id(member): (member, one) for member in members}
            first = self._cluster.wait([member for member, _ in open_ones.values()],
                                       max(deadline - time.monotonic(), 0.0))
            if first is None:
                return None
            _, asked = open_ones[id(first)]
            if asked is first:
                return first
            asked.token.take(self._cluster, first)

    def result(self, pending: Pending) -> Any:
        """Of a call that is done; of the ranks what rank 0 said."""
        answers = pending.token
        if not isinstance(answers, _Answers):
            return self._cluster.result(pending)
        if answers.error is not None:
            raise answers.error
        return answers.value

    def kill(self, name: str) -> None:
        """End an actor, or every rank, at once."""
        for member in self._names if name == LEARNER else [name]:
            self._cluster.kill(member)

    def close(self) -> None:
        """End everything that was started."""
        self._cluster.close()

"""The sender's thread of a broadcast channel: who is served together, and what happens when one of them fails.

A round serves the receivers that ask for a publication: they and the sender form a communicator, and the buckets
are broadcast once. The first to ask waits ``weights.gather_s`` at most for those that took the version before; who
comes later, a receiver that just started or the evaluator, gets a round of its own. Communicators of the last
memberships are kept, since making one takes longer than most broadcasts; whoever joins or leaves makes a new one.

A member that dies is noticed by its connection, one that stops answering by the deadline of the round, half of
``weights.deadline_s``. Either way the round is aborted, all are told, and those that ask again form the next round.
A receiver whose rounds for one publication fail again and again is told why and asks no more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from engine.config.cluster import WeightsConfig
from engine.errors import WeightChannelError
from engine.weights.communicator import Communicator, Communicators, Watch
from engine.weights.rendezvous import Member, Reception

ATTEMPTS = 3
"""Rounds that a receiver may have for one publication."""
_KEPT = 2
"""Communicators that stay open: of the generators together, and of one that came alone."""
_IDLE_S = 1.0
_END_S = 5.0
_FAILURES = (WeightChannelError, RuntimeError, OSError)


@dataclass(frozen=True, slots=True, eq=False)
class Publication:
    """What is broadcast to whoever asks for ``key``."""

    key: str
    version: str
    before: str
    """The version published before this one; empty for the first."""
    buckets: Sequence[Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    meeting: str
    members: frozenset[int]
    communicator: Communicator


class Rounds:
    """Serves publications until it is closed, in a thread of its own."""

    def __init__(self, config: WeightsConfig, communicators: Communicators) -> None:
        """Listen and start the thread.

        Raises:
            WeightChannelError: ``weights.host`` cannot be listened on.
        """
        self._gather_s, self._round_s = config.gather_s, config.deadline_s / 2
        self._communicators = communicators
        self._reception = Reception(config.host)
        self._groups: list[_Group] = []
        self._offered: dict[str, Publication] = {}
        self._sending: Publication | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="weight-rounds", daemon=True)
        self._thread.start()

    @property
    def location(self) -> str:
        """What receivers need to come here."""
        return self._reception.location

    def offer(self, publication: Publication) -> None:
        """Serve this to whoever asks for it.

        Raises:
            WeightChannelError: the thread has ended by an error of its own.
        """
        if self._failure is not None:
            raise WeightChannelError(f"the weight channel has ended: {self._failure!r}") from self._failure
        with self._lock:
            self._offered[publication.key] = publication

    def withdraw(self, key: str) -> bool:
        """Serve this no more. True where its memory is free; False while a round still reads it."""
        with self._lock:
            self._offered.pop(key, None)
            busy = self._sending is not None and self._sending.key == key
        self._reception.wake()  # who waits for it is told
        return not busy

    def close(self) -> None:
        """Abort what goes on, hang up and end the thread; twice is harmless."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._reception.wake()
        self._thread.join(_END_S)

    # ---- in the thread ---------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            while not self._closing.is_set():
                self._reception.listen(self._patience())
                self._prune()
                self._serve()
        except BaseException as error:  # noqa: BLE001 - the next publish raises it in the learner's own thread
            self._failure = error
        finally:
            for group in self._groups:
                group.communicator.abort()
            self._groups.clear()
            self._reception.close()

    def _patience(self) -> float:
        """Seconds until a round may be due that nobody's message announces."""
        since = [member.since for member in self._reception.members if member.wants]
        if not since:
            return _IDLE_S
        return min(_IDLE_S, max(0.0, min(since) + self._gather_s - time.monotonic()))

    def _serve(self) -> None:
        """Serve everything that is due, in the order in which it was asked for."""
        members = self._reception.members
        for key in dict.fromkeys(member.wants for member in members if member.wants):
            askers = self._not_failed([member for member in members if member.wants == key])
            with self._lock:
                publication = self._offered.get(key)
            if publication is None:
                for member in askers:
                    member.wants = ""
                    self._reception.tell(member, gone=True)
            elif askers and (self._overdue(askers) or not self._awaited(publication)):
                self._round(publication, askers)

    def _not_failed(self, askers: list[Member]) -> list[Member]:
        """Those that may have another round; the others are told why not."""
        for member in [member for member in askers if member.attempts >= ATTEMPTS]:
            askers.remove(member)
            member.wants = ""
            self._reception.tell(member, failed=member.why)
        return askers

    def _awaited(self, publication: Publication) -> bool:
        """Whether somebody may still come who took the version before."""
        return any(not member.wants and member.took == publication.before
                   for member in self._reception.members if publication.before)

    def _overdue(self, askers: list[Member]) -> bool:
        return time.monotonic() >= min(member.since for member in askers) + self._gather_s

    def _round(self, publication: Publication, askers: list[Member]) -> None:
        """One broadcast to these members, or word to them that it failed."""
        with self._lock:
            if publication.key not in self._offered:  # withdrawn, and its memory is not ours to read any more
                return
            self._sending = publication
        for member in askers:
            member.wants = ""
            member.attempts += 1
        meeting = ""
        try:
            group = self._known(askers)
            meeting = group.meeting if group else self._communicators.invite()
            watch = self._watch(meeting, askers)
            self._invite(publication, meeting, askers)
            if group is None:
                communicator = self._communicators.join(meeting, 0, len(askers) + 1, watch)
                group = _Group(meeting, _numbers(askers), communicator)
                self._groups = [group, *self._groups]
            group.communicator.send(publication.buckets, watch)
        except _FAILURES as error:
            self._drop([group for group in self._groups if group.meeting == meeting])
            self._failed(askers, error, meeting)
        finally:
            with self._lock:
                self._sending = None
        self._drop(self._groups[_KEPT:])

    def _known(self, askers: list[Member]) -> _Group | None:
        """The open communicator of exactly these members; it is the last to be given up now."""
        wanted = _numbers(askers)
        for group in self._groups:
            if group.members == wanted:
                self._groups = [group, *(other for other in self._groups if other is not group)]
                return group
        return None

    def _invite(self, publication: Publication, meeting: str, askers: list[Member]) -> None:
        kept = [group.meeting for group in self._groups[:_KEPT]]
        for rank, member in enumerate(askers, start=1):
            self._reception.tell(member, start=meeting, key=publication.key, rank=rank, ranks=len(askers) + 1,
                                 keep=kept)

    def _watch(self, meeting: str, askers: list[Member]) -> Watch:
        """Raises as soon as the round cannot end well."""
        deadline = time.monotonic() + self._round_s

        def watch() -> None:
            self._reception.listen(0.0)
            for member in askers:
                if member not in self._reception.members:
                    raise WeightChannelError(f"{member.name} left in the middle of a broadcast")
                if meeting in member.broken:
                    raise WeightChannelError(f"{member.name} gave the broadcast up")
            if self._closing.is_set():
                raise WeightChannelError("the sender is being closed")
            if time.monotonic() > deadline:
                raise WeightChannelError(f"a broadcast took over {self._round_s:g} s, half of weights.deadline_s")

        return watch

    def _failed(self, askers: list[Member], error: BaseException, meeting: str) -> None:
        """Let those that are left ask again; who has given the meeting up by itself has done so."""
        why = str(error) if isinstance(error, WeightChannelError) else f"{type(error).__name__}: {error}"
        for member in askers:
            member.why = member.why or why
            self._reception.tell(member, again=why, meeting=meeting)

    def _prune(self) -> None:
        """Give up communicators of which a member has left, or that a member gave up."""
        living = _numbers(self._reception.members)
        broken = {meeting for member in self._reception.members for meeting in member.broken}
        for member in self._reception.members:
            member.broken.clear()
        self._drop([group for group in self._groups if group.meeting in broken or not group.members <= living])

    def _drop(self, groups: Sequence[_Group]) -> None:
        for group in groups:
            group.communicator.abort()
        self._groups = [group for group in self._groups if group not in groups]


def _numbers(members: Sequence[Member]) -> frozenset[int]:
    return frozenset(member.number for member in members)

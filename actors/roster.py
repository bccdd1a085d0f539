"""What the controller knows of every outstanding group: states and versions, never tokens.

Whatever the controller asks at every event (is anything flying, which groups are complete, how old are
they) is counted where a member changes, so a question costs the same with ten groups and ten thousand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from engine.records.trajectory import DropReason

KILLS_TO_QUARANTINE = 2
READY, FLYING, SPENT, FINISHED, JUDGED = "ready", "flying", "spent", "finished", "judged"


@dataclass(slots=True)
class Member:
    """One trajectory: ready -> flying -> ready | spent | finished -> judged."""

    trajectory_id: int
    oldest: int
    """No token of it was or will be sampled by an earlier version; exact once it finished."""
    status: str = READY
    holder: str = ""
    length: int = 0
    deaths: int = 0
    """Generators that died with it."""
    judge_failures: int = 0


@dataclass(slots=True)
class OpenGroup:
    """A group between issue and the update, filter or drop that ends it."""

    group_id: int
    prompt_id: str
    members: list[Member] = field(default_factory=list)
    doomed: str = ""
    """A drop reason that waits for its last flying member."""

    @property
    def oldest(self) -> int:
        """Lower bound on the version of its oldest token."""
        return min(member.oldest for member in self.members)

    @property
    def complete(self) -> bool:
        """Every member is judged."""
        return not self.doomed and all(member.status == JUDGED for member in self.members)


class Roster:
    """Outstanding groups by id, in order of issue; a group leaves when it is trained or dropped."""

    def __init__(self, max_attempts: int) -> None:
        """Nobody outstanding; ``max_attempts`` generators may die with a trajectory, then it is given up."""
        self.groups: dict[int, OpenGroup] = {}
        self.ages: Counter[int] = Counter()
        """Oldest version -> groups."""
        self.complete: set[int] = set()
        """Ids of the groups that an update may take."""
        self.complete_ages: Counter[int] = Counter()
        """Oldest version -> groups that an update may take."""
        self.training: set[int] = set()
        """Ids of the groups that the learner has; they are beyond drops, and no longer counted."""
        self._max_attempts = max_attempts
        self._kills: Counter[str] = Counter()
        self._group_of: dict[int, tuple[OpenGroup, Member]] = {}
        self._statuses: Counter[str] = Counter()
        self._ready: set[int] = set()
        self._doomed: set[int] = set()

    def add(self, group: OpenGroup) -> None:
        """Take in a group, new or restored."""
        self.groups[group.group_id] = group
        self.ages[group.oldest] += 1
        for member in group.members:
            self._group_of[member.trajectory_id] = (group, member)
            self._statuses[member.status] += 1
        if any(member.status == READY for member in group.members):
            self._ready.add(group.group_id)
        if group.complete:
            self._completed(group)
        if group.doomed:
            self._doomed.add(group.group_id)

    def remove(self, group_id: int) -> None:
        """Let go of a group: it is trained or dropped."""
        group = self.groups.pop(group_id)
        if group_id not in self.training:
            self._count_age(group.oldest, -1)
        for member in group.members:
            del self._group_of[member.trajectory_id]
            self._statuses[member.status] -= 1
        self._taken(group)
        for index in (self._ready, self.training, self._doomed):
            index.discard(group_id)

    def _count_age(self, oldest: int, change: int) -> None:
        self.ages[oldest] += change
        if not self.ages[oldest]:
            del self.ages[oldest]

    def _completed(self, group: OpenGroup) -> None:
        if group.group_id not in self.complete:
            self.complete.add(group.group_id)
            self.complete_ages[group.oldest] += 1

    def _taken(self, group: OpenGroup) -> None:
        """No update may take it any more."""
        if group.group_id in self.complete:
            self.complete.discard(group.group_id)
            self.complete_ages[group.oldest] -= 1
            if not self.complete_ages[group.oldest]:
                del self.complete_ages[group.oldest]

    def place(self, group: OpenGroup, member: Member, status: str, holder: str = "") -> None:
        """A member enters a state; only a flying one has a holder."""
        self._statuses[member.status] -= 1
        self._statuses[status] += 1
        member.status, member.holder = status, holder
        if status == READY:
            self._ready.add(group.group_id)
        elif status == JUDGED and group.complete:
            self._completed(group)

    def stamp(self, group: OpenGroup, member: Member, oldest: int) -> None:
        """More is known of the oldest version of a member."""
        if oldest == member.oldest:
            return
        takeable = group.group_id in self.complete
        self._taken(group)
        self._count_age(group.oldest, -1)
        member.oldest = oldest
        self._count_age(group.oldest, +1)
        if takeable:
            self._completed(group)

    def doom(self, group: OpenGroup, reason: DropReason) -> None:
        """Drop the group when its last flying member is back; the first reason stays, poison wins."""
        if group.group_id in self.training:
            return
        if not group.doomed or reason is DropReason.poison_prompt:
            group.doomed = reason.value
        self._doomed.add(group.group_id)
        self._taken(group)

    def bury(self, holder: str) -> None:
        """A generator died: what it held is ready again, given up, or under suspicion.

        A prompt that was being answered at ``KILLS_TO_QUARANTINE`` deaths, with no group of it trained
        in between, is taken for their cause.
        """
        suspects: dict[str, int] = {}
        for group, member in self.members(FLYING):
            if member.holder == holder:
                self.place(group, member, READY)
                suspects[group.prompt_id] = 1
                member.deaths += 1
                if member.deaths >= self._max_attempts:
                    self.doom(group, DropReason.given_up)
        self._kills.update(suspects)
        for group in self.groups.values():
            if group.prompt_id in suspects and self._kills[group.prompt_id] >= KILLS_TO_QUARANTINE:
                self.doom(group, DropReason.poison_prompt)

    def train(self, group_ids: list[int]) -> None:
        """The learner takes complete groups; their prompts are acquitted."""
        for group_id in group_ids:
            group = self.groups[group_id]
            self._kills.pop(group.prompt_id, None)
            self._count_age(group.oldest, -1)
            self._taken(group)
        self.training.update(group_ids)

    def find(self, trajectory_id: int) -> tuple[OpenGroup, Member] | None:
        """Group and member of a trajectory, None once it left."""
        return self._group_of.get(trajectory_id)

    def members(self, *statuses: str) -> Iterator[tuple[OpenGroup, Member]]:
        """Members in any of these states, oldest group first."""
        for group in self.groups.values():
            for member in group.members:
                if member.status in statuses:
                    yield group, member

    def any(self, *statuses: str) -> bool:
        """Some member is in one of these states."""
        return any(self._statuses[status] for status in statuses)

    def ready(self) -> list[tuple[OpenGroup, list[Member]]]:
        """Members to hand out, oldest group first; those of doomed groups are not."""
        work = []
        for group_id in sorted(self._ready):
            group = self.groups[group_id]
            members = [member for member in group.members if member.status == READY]
            if members and not group.doomed:
                work.append((group, members))
            elif not members:
                self._ready.discard(group_id)
        return work

    def lost_causes(self) -> list[OpenGroup]:
        """Doomed groups of which nothing flies any more, by id."""
        if not self._doomed:
            return []
        doomed = [self.groups[group_id] for group_id in sorted(self._doomed)]
        return [g for g in doomed if not any(member.status == FLYING for member in g.members)]

    def state_dict(self) -> dict[str, Any]:
        """Plain data; taken when nothing is flying."""
        groups = [
            [g.group_id, g.prompt_id, g.doomed,
             [[m.trajectory_id, m.oldest, m.status, m.length, m.deaths, m.judge_failures]
              for m in g.members]]
            for g in self.groups.values()
        ]
        return {"groups": groups, "kills": dict(self._kills)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        for group_id in list(self.groups):
            self.remove(group_id)
        self._kills = Counter(state["kills"])
        for group_id, prompt_id, doomed, members in state["groups"]:
            group = OpenGroup(group_id, prompt_id, doomed=doomed)
            for trajectory_id, oldest, status, length, deaths, failures in members:
                group.members.append(Member(trajectory_id, oldest, status, "", length, deaths, failures))
            self.add(group)

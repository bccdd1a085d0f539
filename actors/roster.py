"""What the controller knows of every outstanding group: states, versions and leases, never tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

READY, FLYING, SPENT, FINISHED, JUDGED = "ready", "flying", "spent", "finished", "judged"


@dataclass(slots=True)
class Member:
    """One trajectory: ready -> flying -> ready | spent | finished -> judged."""

    trajectory_id: int
    oldest: int
    """No token of it was sampled by an earlier version; exact once tokens arrived."""
    status: str = READY
    holder: str = ""
    lease_until: float = 0.0
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


@dataclass(slots=True)
class GeneratorSeat:
    """A living generator: what it serves and how many trajectories it holds."""

    version: int
    open_trajectories: int = 0


class Roster:
    """Outstanding groups by id, in order of issue."""

    def __init__(self) -> None:
        self.groups: dict[int, OpenGroup] = {}
        self._group_of: dict[int, tuple[OpenGroup, Member]] = {}

    def add(self, group: OpenGroup) -> None:
        """Take in a new group."""
        self.groups[group.group_id] = group
        for member in group.members:
            self._group_of[member.trajectory_id] = (group, member)

    def remove(self, group_id: int) -> OpenGroup:
        """A group was trained or dropped."""
        group = self.groups.pop(group_id)
        for member in group.members:
            del self._group_of[member.trajectory_id]
        return group

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
        return next(self.members(*statuses), None) is not None

    def state_dict(self) -> list[Any]:
        """Plain data; taken when nothing is flying."""
        return [
            [g.group_id, g.prompt_id, g.doomed,
             [[m.trajectory_id, m.oldest, m.status, m.length, m.deaths, m.judge_failures]
              for m in g.members]]
            for g in self.groups.values()
        ]

    def load_state_dict(self, state: list[Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.groups.clear()
        self._group_of.clear()
        for group_id, prompt_id, doomed, members in state:
            group = OpenGroup(group_id, prompt_id, doomed=doomed)
            for trajectory_id, oldest, status, length, deaths, failures in members:
                group.members.append(
                    Member(trajectory_id, oldest, status, "", 0.0, length, deaths, failures)
                )
            self.add(group)

"""Who may be issued, and which groups an update takes: the arithmetic of the staleness bound.

With bound S, batch size B and v the version that the next update trains, a group whose oldest token was
sampled by version u must be trained by version u + S. Updates come one after another, B groups each, so
the bound can be kept exactly if, for every w, at most (w + S - v + 1) * B outstanding groups have u <= w:
as many as the updates that are left for them. This module keeps that inequality true:

- a new group sampled by version u is issued only if the inequality still holds with it, so at most
  (S + 1) * B groups are outstanding, and fewer where generators lag behind;
- an update takes the oldest complete groups, and only if the inequality holds for those that stay.

The worst case follows: the B oldest groups are always a legal batch, so waiting for them always helps,
and no token is ever trained more than S versions after it was sampled. With S = 0 it says: issue one
batch, wait for all of it, train it, and sample the next with the new weights.

Groups are counted by the version u of their oldest token (version -> groups); few versions are alive at
any time, so every question costs a handful of additions, however many groups are outstanding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence


def feasible(groups: Mapping[int, int], next_version: int, bound: int, batch_groups: int) -> bool:
    """Whether all these groups can be trained within the bound.

    Args:
        groups: oldest version -> outstanding groups.
        next_version: version that the next update trains.
        bound: largest staleness in versions.
        batch_groups: groups of one update.

    Example:
        >>> feasible({3: 2}, next_version=3, bound=0, batch_groups=2)
        True
        >>> feasible({3: 3}, next_version=3, bound=0, batch_groups=2)
        False
    """
    count = 0
    for version in sorted(groups):
        count += groups[version]
        if count > (version + bound - next_version + 1) * batch_groups:
            return False
    return True


def room_for(
    groups: Mapping[int, int], fresh: int, next_version: int, bound: int, batch_groups: int,
    enforce: bool = True,
) -> int:
    """How many more groups may be issued, to be sampled by version ``fresh`` or a later one.

    Args:
        groups: oldest version -> outstanding groups.
        fresh: no token of the new groups will be older.
        next_version: version that the next update trains.
        bound: largest staleness in versions.
        batch_groups: groups of one update.
        enforce: False asks only whether the updates left for the new groups have places enough, since
            what is older may be masked; a group past the bound must not stop the run.

    Example:
        >>> room_for({}, fresh=0, next_version=0, bound=1, batch_groups=4)
        8
        >>> room_for({0: 3}, fresh=1, next_version=1, bound=1, batch_groups=2)
        0
    """
    count, room = 0, (bound + 1) * batch_groups - sum(groups.values())
    for version in sorted({*groups, fresh}):
        count += groups.get(version, 0)
        places = (version + bound - next_version + 1) * batch_groups
        if version >= fresh:
            room = min(room, places - count)
        elif enforce and count > places:
            return 0
    return max(room, 0)


def batch_is_legal(
    complete: Mapping[int, int], groups: Mapping[int, int], next_version: int, bound: int, batch_groups: int,
) -> bool:
    """Whether the oldest complete groups may be trained now: what :func:`choose_batch` asks, from counts alone.

    Args:
        complete: oldest version -> complete groups.
        groups: oldest version -> outstanding groups, the complete ones included.
        next_version: version that the update trains.
        bound: largest staleness in versions.
        batch_groups: groups of one update.

    Example:
        >>> batch_is_legal({0: 1, 1: 1}, {0: 2, 1: 1}, next_version=1, bound=1, batch_groups=1)
        False
    """
    stay, room = Counter(groups), batch_groups
    for version in sorted(complete):
        taken = min(complete[version], room)
        stay[version] -= taken
        room -= taken
    return feasible(+stay, next_version + 1, bound, batch_groups)


def choose_batch(
    complete: Sequence[tuple[int, int]], groups: Mapping[int, int], next_version: int, bound: int,
    batch_groups: int, enforce: bool = True,
) -> list[int]:
    """Group ids for the next update, or nothing while the learner must wait for an older group.

    Args:
        complete: (oldest version, group id) of every complete group.
        groups: oldest version -> outstanding groups, the complete ones included.
        next_version: version that the update trains.
        bound: largest staleness in versions.
        batch_groups: groups of one update.
        enforce: False lets the update go on and leaves masking to the learner.

    Example:
        >>> choose_batch([(0, 7), (1, 2)], {0: 2, 1: 1}, next_version=1, bound=1, batch_groups=1)
        []
        >>> choose_batch([(0, 7), (1, 2)], {0: 1, 1: 1}, next_version=1, bound=1, batch_groups=1)
        [7]
    """
    chosen = sorted(complete)[:batch_groups]
    if enforce:
        stay = Counter(groups)
        stay.subtract(oldest for oldest, _ in chosen)
        if not feasible(+stay, next_version + 1, bound, batch_groups):
            return []
    return sorted(group_id for _, group_id in chosen)

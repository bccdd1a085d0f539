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
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def feasible(oldest: Iterable[int], next_version: int, bound: int, batch_groups: int) -> bool:
    """Whether groups with these oldest versions can all be trained within the bound.

    Example:
        >>> feasible([3, 3], next_version=3, bound=0, batch_groups=2)
        True
        >>> feasible([3, 3, 3], next_version=3, bound=0, batch_groups=2)
        False
    """
    return all(
        count <= (version + bound - next_version + 1) * batch_groups
        for count, version in enumerate(sorted(oldest), start=1)
    )


def room_for(oldest: Sequence[int], fresh: int, next_version: int, bound: int, batch_groups: int) -> int:
    """How many more groups may be issued to be sampled by version ``fresh``.

    Example:
        >>> room_for([], fresh=0, next_version=0, bound=1, batch_groups=4)
        8
    """
    room = 0
    limit = (bound + 1) * batch_groups - len(oldest)
    while room < limit and feasible([*oldest, *[fresh] * (room + 1)], next_version, bound, batch_groups):
        room += 1
    return room


def choose_batch(
    complete: Sequence[tuple[int, int]], waiting: Sequence[int], next_version: int, bound: int,
    batch_groups: int, enforce: bool = True,
) -> list[int]:
    """Group ids for the next update, or nothing while the learner must wait for an older group.

    Args:
        complete: (oldest version, group id) of every complete group.
        waiting: oldest versions of the outstanding groups that are not complete.
        next_version: version that the update trains.
        bound: largest staleness in versions.
        batch_groups: groups of one update.
        enforce: False lets the update go on and leaves masking to the learner.

    Example:
        >>> choose_batch([(0, 7), (1, 2)], [0], next_version=1, bound=1, batch_groups=1)
        [7]
        >>> choose_batch([(1, 2)], [0], next_version=1, bound=1, batch_groups=1)
        []
    """
    ranked = sorted(complete)
    chosen, left = ranked[:batch_groups], ranked[batch_groups:]
    stays = [oldest for oldest, _ in left] + list(waiting)
    if enforce and not feasible(stays, next_version + 1, bound, batch_groups):
        return []
    return sorted(group_id for _, group_id in chosen)

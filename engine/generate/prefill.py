"""When the native sampler prefills: its rhythm, which a forecast keeps too."""

from __future__ import annotations

PATIENCE = 8
"""A prefill pass costs the same however few rows it needs, so small ones wait: for an eighth of the slots
to need one, but at most this many steps."""


def may_wait(lacking: int, occupied: int, steps: int) -> bool:
    """Whether so few slots lack keys that decoding goes on without them.

    Args:
        lacking: slots that lack keys.
        occupied: slots that hold a trajectory.
        steps: decode steps so far.

    Example:
        >>> may_wait(1, 9, 15), may_wait(1, 9, 16), may_wait(1, 8, 15)
        (True, False, False)
    """
    return PATIENCE * lacking < occupied and steps % PATIENCE != 0

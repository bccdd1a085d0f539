"""Decide, token by token, that a response is looping.

For every period p up to a maximum, a counter holds how many tokens in a row equalled the token p places
earlier. A loop of period p has gone round r times once the counter reaches p * (r - 1). One comparison
per period and token, for all slots at once, whatever the length of the responses.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.config.rollout import RepetitionConfig

_NOTHING = -1


class RepetitionWatch:
    """Loop counters of all slots.

    Example:
        >>> watch = RepetitionWatch(RepetitionConfig(max_period_tokens=2, min_repeats=3, min_tokens=3), 1)
        >>> watch.restart(0, np.array([7, 7], np.int64))
        >>> bool(watch.observe(np.array([7]), np.array([0]))[0])
        True
    """

    def __init__(self, config: RepetitionConfig, slots: int) -> None:
        self._periods = np.arange(1, config.max_period_tokens + 1)
        copies = self._periods * (config.min_repeats - 1)
        self._needed = np.maximum(copies, config.min_tokens - self._periods)
        self._matched = np.zeros((slots, config.max_period_tokens), np.int64)
        self._recent = np.full((slots, config.max_period_tokens), _NOTHING, np.int64)

    def restart(self, slot: int, generated: NDArray[np.int64]) -> None:
        """Forget a slot's past and take in the response tokens of earlier segments, [T]."""
        self._recent[slot] = _NOTHING
        newest_first = generated[::-1][: len(self._periods)]
        self._recent[slot, : len(newest_first)] = newest_first
        for period in self._periods:
            differs = np.flatnonzero(generated[period:] != generated[:-period])
            compared = max(len(generated) - int(period), 0)
            self._matched[slot, period - 1] = compared - (int(differs[-1]) + 1 if len(differs) else 0)

    def observe(self, newest: NDArray[np.int64], slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Take in the newest token of some slots.

        Args:
            newest: [R] token ids, 0 or more.
            slots: [R] whose tokens they are, each slot once.

        Returns:
            [R] True where the response is looping.
        """
        recent = self._recent[slots]
        matched = np.where(recent == newest[:, None], self._matched[slots] + 1, 0)
        self._matched[slots] = matched
        self._recent[slots, 1:] = recent[:, :-1]
        self._recent[slots, 0] = newest
        looping: NDArray[np.bool_] = np.any(matched >= self._needed, axis=1)
        return looping

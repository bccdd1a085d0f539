"""Decide, token by token, that a response is looping.

For every period p up to a maximum, a counter holds how many tokens in a row equalled the token p places
earlier. A loop of period p has gone round r times once the counter reaches p * (r - 1). One comparison
per period and token, for all slots at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.config.rollout import RepetitionConfig


class RepetitionWatch:
    """Loop counters of all slots.

    Example:
        >>> watch = RepetitionWatch(RepetitionConfig(max_period_tokens=2, min_repeats=3, min_tokens=3), 1)
        >>> watch.restart(0, np.array([7, 7], np.int64))
        >>> tokens = np.array([[7, 7, 7]])
        >>> bool(watch.observe(tokens, np.array([0]), np.array([3]))[0])
        True
    """

    def __init__(self, config: RepetitionConfig, slots: int) -> None:
        self._periods = np.arange(1, config.max_period_tokens + 1)
        copies = self._periods * (config.min_repeats - 1)
        self._needed = np.maximum(copies, config.min_tokens - self._periods)
        self._matched = np.zeros((slots, config.max_period_tokens), np.int64)
        self._seen = np.zeros(slots, np.int64)

    def restart(self, slot: int, generated: NDArray[np.int64]) -> None:
        """Forget a slot's past and take in the response tokens of earlier segments."""
        self._matched[slot] = 0
        self._seen[slot] = 0
        for length in range(1, len(generated) + 1):
            self._advance(generated[None], np.array([slot]), np.array([length]))

    def _advance(self, response: NDArray[np.int64], slots: NDArray[np.int64],
                 lengths: NDArray[np.int64]) -> None:
        rows = np.arange(len(slots))
        newest = response[rows, lengths - 1]
        earlier = lengths[:, None] - 1 - self._periods[None]
        same = response[rows[:, None], earlier.clip(min=0)] == newest[:, None]
        self._matched[slots] = np.where(same & (earlier >= 0), self._matched[slots] + 1, 0)
        self._seen[slots] = lengths

    def observe(self, response: NDArray[np.int64], slots: NDArray[np.int64],
                lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Take in the newest token of some slots.

        Args:
            response: [R, C] response tokens, prompt left out, one row for each of ``slots``.
            slots: [R] which slots.
            lengths: [R] response length with the newest token, at least 1.

        Returns:
            [R] True where the response is looping.
        """
        self._advance(response, slots, lengths)
        return (self._matched[slots] >= self._needed).any(axis=1)

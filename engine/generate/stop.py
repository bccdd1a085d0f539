"""Why a response ends: an end token, the length limit, or a loop."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from engine.records.trajectory import FinishReason


class StopRule:
    """End tokens as a lookup table.

    Example:
        >>> rule = StopRule([2], vocabulary=8)
        >>> rule.reason(token=2, length=1, limit=4, looping=False).value
        'stop'
    """

    def __init__(self, stop_ids: Iterable[int], vocabulary: int) -> None:
        self._ends = np.zeros(vocabulary, bool)
        self._ends[[token for token in stop_ids if 0 <= token < vocabulary]] = True

    def reason(self, token: int, length: int, limit: int, looping: bool) -> FinishReason | None:
        """The reason to end after ``token``, the ``length``-th of at most ``limit``; None to go on."""
        if self._ends[token]:
            return FinishReason.stop
        if looping:
            return FinishReason.repetition
        return FinishReason.length if length >= limit else None

    def candidates(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64],
                   limits: NDArray[np.int64], looping: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[R] True where :meth:`reason` is not None: one look for all slots."""
        return self._ends[tokens] | looping | (lengths >= limits)

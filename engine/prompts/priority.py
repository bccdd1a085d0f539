"""Success rate over a window, and draws in proportion to 1 - success rate (Kimi k1.5, section 2.3.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import PromptError


class SuccessWindow:
    """The newest verdicts of every prompt, and the fraction of them that was correct.

    Example:
        >>> window = SuccessWindow(size=4, initial=0.5)
        >>> window.observe("a", 1.0, 2)
        >>> window.observe("a", 0.0, 2)
        >>> window.rate("a"), window.rate("b")
        (0.5, 0.5)
    """

    def __init__(self, size: int, initial: float) -> None:
        self._size = size
        self._initial = initial
        self._verdicts: dict[str, list[tuple[float, int]]] = {}

    def observe(self, prompt_id: str, correct_fraction: float, samples: int) -> None:
        """Add ``samples`` verdicts; what exceeds the window leaves, oldest first.

        Args:
            prompt_id: whose verdicts.
            correct_fraction: correct ones among them, 0..1.
            samples: how many verdicts, at least 1.

        Raises:
            PromptError: a fraction outside 0..1 or no verdict at all.
        """
        if not 0.0 <= correct_fraction <= 1.0 or samples < 1:
            raise PromptError(
                f"success of prompt {prompt_id!r} was reported as {correct_fraction} of {samples} samples: "
                "expected a fraction between 0 and 1 of at least 1 sample"
            )
        entries = [*self._verdicts.get(prompt_id, []), (float(correct_fraction), int(samples))]
        kept: list[tuple[float, int]] = []
        room = self._size
        for fraction, number in reversed(entries):
            if room <= 0:
                break
            kept.append((fraction, min(number, room)))
            room -= number
        self._verdicts[prompt_id] = kept[::-1]

    def observed(self, prompt_id: str) -> bool:
        """Whether any verdict is known."""
        return prompt_id in self._verdicts

    def rate(self, prompt_id: str) -> float:
        """Correct verdicts in the window as a fraction, the initial rate before the first verdict."""
        entries = self._verdicts.get(prompt_id)
        if not entries:
            return self._initial
        return sum(fraction * number for fraction, number in entries) / sum(number for _, number in entries)

    def state_dict(self) -> dict[str, Any]:
        """Plain data: prompt id to [[fraction, samples], ...], oldest first."""
        return {key: [list(entry) for entry in entries] for key, entries in self._verdicts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._verdicts = {
            key: [(float(fraction), int(number)) for fraction, number in entries]
            for key, entries in state.items()
        }


def priority_weights(success_rates: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """[P] weights max(floor, 1 - success rate); not normalised.

    Example:
        >>> priority_weights(np.array([0.0, 0.5, 1.0]), 0.05).tolist()
        [1.0, 0.5, 0.05]
    """
    return np.maximum(floor, 1.0 - success_rates)


def weighted_choice(
    weights: Sequence[float] | NDArray[np.float64], count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """``count`` different indices, each next one in proportion to the weights that remain.

    The order of w_i / E_i with unit exponential E_i is that of successive weighted draws without
    replacement (Efraimidis and Spirakis 2006), in one pass.

    Args:
        weights: [P] above 0.
        count: at most P.
        generator: spends P random numbers.

    Returns:
        [count] indices in the order drawn.
    """
    values = np.asarray(weights, dtype=np.float64)
    assert count <= values.size, f"cannot draw {count} different of {values.size}"
    arrival = generator.standard_exponential(values.size) / values
    return np.argsort(arrival, kind="stable")[:count]

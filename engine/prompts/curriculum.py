"""From easy to hard on a schedule of updates (Kimi k1.5, section 2.3.4 and figure 9).

Figure 9 draws uniformly from every difficulty up to an iteration (24 there) and from the hard problems
alone afterwards. A prompt is as hard as its label says, or, unlabelled, as its success rate shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.config.prompts import CurriculumConfig
from engine.records.prompt import Prompt


def difficulties(prompts: Sequence[Prompt], success_rate: Callable[[str], float]) -> NDArray[np.float64]:
    """[P] difficulty, 0 easy to 1 hard: the prompt's label, else 1 - success rate."""
    return np.array(
        [
            1.0 - success_rate(prompt.prompt_id) if prompt.difficulty is None else prompt.difficulty
            for prompt in prompts
        ],
        dtype=np.float64,
    )


def only_hard(config: CurriculumConfig, updates: int) -> bool:
    """Whether the uniform phase is over after this many committed updates."""
    return updates >= config.uniform_updates


def hard_mask(difficulty: NDArray[np.float64], quantile: float) -> NDArray[np.bool_]:
    """[P] true for what lies at or above the quantile; never empty for a non-empty set.

    The quantile is a member of the set, the upper neighbour where it falls between two: of four
    different difficulties the quantile 0.5 keeps two.

    Example:
        >>> hard_mask(np.array([0.1, 0.2, 0.3, 0.4]), 0.5).tolist()
        [False, False, True, True]
    """
    return difficulty >= np.quantile(difficulty, quantile, method="higher")

"""Rewards that look at length: the length reward of Kimi k1.5 and the soft overlong punishment of DAPO.

Pure functions of one group. They run when the group is consumed, since the warm-up depends on the
version; the baseline is then the mean of the total reward.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.config.rewards import RewardConfig
from engine.records.trajectory import Group


def length_rewards(lengths: Sequence[int], correct: Sequence[bool]) -> list[float]:
    """The length reward of each of the K trajectories (Kimi k1.5, arXiv 2501.12599, section 2.3.3).

    With min and max over all K, right and wrong:
    ``lambda_i = 0.5 - (len_i - min_len) / (max_len - min_len)``; a correct answer gets lambda_i, a wrong
    one min(0, lambda_i); all get 0 when the lengths are equal.

    Args:
        lengths: [K] sampled tokens, the stop token included.
        correct: [K] whether the answer verified.

    Returns:
        [K] within -0.5..0.5, dimensionless.

    Example:
        >>> length_rewards([2, 4, 6], [True, True, False])
        [0.5, 0.0, -0.5]
    """
    if not lengths:
        return []
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    slopes = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return [slope if right else min(0.0, slope) for slope, right in zip(slopes, correct, strict=True)]


def overlong_punishment(length: int, max_response_tokens: int, buffer_tokens: int) -> float:
    """The soft punishment near the limit (DAPO, arXiv 2503.14476, eq. 13), within -1..0.

    0 up to ``max_response_tokens - buffer_tokens``, then linear down to -1 at the limit and beyond.
    ``buffer_tokens`` 0 switches it off.

    Example:
        >>> overlong_punishment(95, 100, 10)
        -0.5
    """
    if buffer_tokens <= 0:
        return 0.0
    excess = length - (max_response_tokens - buffer_tokens)
    return -min(1.0, max(0, excess) / buffer_tokens) if excess > 0 else 0.0


def total_rewards(
    group: Group, config: RewardConfig, updates: int, max_response_tokens: int
) -> list[float]:
    """[K] score plus weighted length reward plus overlong punishment.

    Args:
        group: its verdicts have outcome ok, so their scores are finite.
        config: ``length.weight`` applies from ``length.warmup_updates`` committed updates on, constant
            from there (a step, not a ramp); ``overlong.buffer_tokens`` 0 means no punishment.
        updates: committed updates of the version being trained.
        max_response_tokens: the length limit of a response.
    """
    totals = [verdict.score for verdict in group.verdicts]
    lengths = [trajectory.length for trajectory in group.trajectories]
    weight = config.length.weight
    if weight > 0.0 and updates >= config.length.warmup_updates:
        bonuses = length_rewards(lengths, [verdict.correct for verdict in group.verdicts])
        totals = [total + weight * bonus for total, bonus in zip(totals, bonuses, strict=True)]
    buffer_tokens = config.overlong.buffer_tokens
    if buffer_tokens > 0:
        totals = [
            total + config.overlong.factor * overlong_punishment(length, max_response_tokens, buffer_tokens)
            for total, length in zip(totals, lengths, strict=True)
        ]
    return totals

"""What the ranks of a learner tell each other of an update: sums, whether all was finite, who did how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.learn.packing import PackedRow
from engine.models.ranks import Ranks


def added_up(ranks: Ranks, sums: Mapping[str, float], finite: bool) -> tuple[dict[str, float], bool]:
    """Sums over ranks, and whether all of them were finite; equal on all ranks. A collective.

    Args:
        ranks: of this process.
        sums: what this rank added up over its rows; ranks without rows have no names.
        finite: whether all of it was finite here.
    """
    if ranks.alone:
        return dict(sums), finite
    told = ranks.gather([finite, sums])
    total: dict[str, float] = {}
    for _, values in told:
        for name, value in values.items():
            total[name] = total.get(name, 0.0) + value
    return total, all(fine for fine, _ in told)


def shares(ranks: Ranks, packed: Sequence[Sequence[PackedRow]]) -> dict[str, float]:
    """Metrics of how evenly an update was split; nothing to say of one learner. A collective.

    Args:
        ranks: of this process.
        packed: rows of this rank, by minibatch.
    """
    if ranks.alone:
        return {}
    own = sum(len(row.tokens) for rows in packed for row in rows if row.samples)
    tokens, waited = zip(*ranks.gather([own, ranks.lap()]), strict=True)
    return {
        "learn/rank_tokens_min": float(min(tokens)), "learn/rank_tokens_max": float(max(tokens)),
        "learn/rank_wait_seconds_min": min(waited), "learn/rank_wait_seconds_max": max(waited),
    }

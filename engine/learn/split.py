"""One minibatch over several ranks, so that they finish together.

Ranks move in step: with sharded weights every layer of every micro-batch is gathered by all of them, so a
micro-batch takes as long as its longest row, and a rank without a row of its own forwards a blank one. Rows are
therefore made of nearly equal cost, and those that are nearest in cost are forwarded at the same time. Which row
a trajectory comes to lie in changes neither its loss nor its gradient.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from engine.learn.packing import Cluster, PackedRow, Sample, blank_row, build_row, cluster_tokens, clusters_of, pack

_DIVISORS = (1, 2, 4)
"""How finely members of a group may be parted: smaller pieces balance better and repeat more prompts."""


def split(samples: Sequence[Sample], ranks: int, row_tokens: int, share_prompts: bool,
          width: int) -> list[list[PackedRow]]:
    """The rows of each rank, equally many: the n-th rows of all ranks are forwarded at the same time.

    Args:
        samples: members of a group stand side by side; without loss-carrying tokens they are left out.
        ranks: how many; 1: rows are packed as closely as they fit.
        row_tokens: token budget of a row; a trajectory longer than that gets one of its own.
        share_prompts: forward the prompt of a group once in each row that it comes to lie in.
        width: of the network's hidden states, which weighs attention against the rest.
    """
    useful = [sample for sample in samples if sample.carries_loss.any()]
    if ranks == 1 or not useful:
        return [pack(useful, row_tokens, share_prompts) for _ in range(ranks)]
    plans = (_plan(useful, ranks, row_tokens, share_prompts, width, divisor) for divisor in _DIVISORS)
    steps = min(plans, key=lambda plan: _lockstep_cost(plan, width))
    columns = [step if index % 2 == 0 else step[::-1] for index, step in enumerate(steps)]
    return [[build_row(column[rank]) if column[rank] else blank_row() for column in columns]
            for rank in range(ranks)]


def row_cost(clusters: Sequence[Cluster], width: int) -> float:
    """What forwarding a row costs, in tokens whose attention were free.

    A token takes some 24 width^2 operations a layer, a pair of tokens that attend 4 width.
    """
    return sum(_cost(cluster, width) for cluster in clusters)


def _cost(cluster: Cluster, width: int) -> float:
    prompt = len(cluster[0].prompt_tokens)
    lengths = [len(sample.response) for sample in cluster]
    pairs = prompt**2 / 2 + sum(length * prompt + length**2 / 2 for length in lengths)
    return prompt + sum(lengths) + pairs / (6 * width)


def _lockstep_cost(steps: Sequence[Sequence[Sequence[Cluster]]], width: int) -> float:
    return sum(max(row_cost(row, width) for row in step) for step in steps)


def _plan(useful: Sequence[Sample], ranks: int, row_tokens: int, share_prompts: bool, width: int,
          divisor: int) -> list[list[list[Cluster]]]:
    """Micro-batches of one row for each rank, the costliest first; rows may be empty in the last one."""
    whole = sum(cluster_tokens(cluster) for cluster in clusters_of(useful, row_tokens, share_prompts))
    count = -(-whole // (ranks * row_tokens))
    while True:
        budget = max(min(row_tokens, whole // (ranks * count)) // divisor, 1)
        rows = _balanced(clusters_of(useful, budget, share_prompts), ranks * count, width)
        if all(len(row) <= 1 or sum(map(cluster_tokens, row)) <= row_tokens for row in rows):
            break
        count += 1
    rows.sort(key=lambda row: row_cost(row, width), reverse=True)
    filled = -(-sum(map(bool, rows)) // ranks)
    return [rows[index * ranks : (index + 1) * ranks] for index in range(filled)]


def _balanced(clusters: Sequence[Cluster], count: int, width: int) -> list[list[Cluster]]:
    """Clusters in so many rows: the costliest first, each to the row that costs least until then."""
    costs = [_cost(cluster, width) for cluster in clusters]
    heap = [(0.0, index) for index in range(count)]
    rows: list[list[int]] = [[] for _ in range(count)]
    for number in sorted(range(len(clusters)), key=lambda number: -costs[number]):
        cost, index = heapq.heappop(heap)
        rows[index].append(number)
        heapq.heappush(heap, (cost + costs[number], index))
    return [[clusters[number] for number in sorted(row)] for row in rows]

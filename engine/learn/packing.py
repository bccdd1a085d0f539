"""Trajectories to packed rows: no padding, and the prompt of a group forwarded once for all its answers.

A trajectory is never split across rows; one longer than the token budget gets a row of its own. Which
rows a trajectory shares changes neither its loss nor its gradient, only the speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.models.packed import Block


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One trajectory as the learner sees it."""

    prompt_tokens: NDArray[np.int32]
    """[T] shared by reference within a group."""
    response: NDArray[np.int32]
    """[T] all tokens after the prompt."""
    carries_loss: NDArray[np.bool_]
    """[T] which response tokens carry loss."""
    behaviour_logprob: NDArray[np.float32]
    """[T] nats."""
    inverse_temperature: NDArray[np.float32]
    """[T] one over the temperature of the draw."""
    group: int
    """Samples of equal group share their prompt."""
    advantage: float = 0.0
    staleness: NDArray[np.int64] | None = None
    """[T] versions between the draw and the update; None where nobody asks."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedRow:
    """One micro-batch: T tokens in blocks, M of which carry loss."""

    tokens: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64, restarting with every sequence."""
    blocks: tuple[Block, ...]
    source: Tensor
    """[M] int64: the row whose hidden state predicts the target."""
    target: Tensor
    """[M] int64 token ids."""
    inverse_temperature: Tensor
    """[M] fp32."""
    behaviour_logprob: Tensor
    """[M] fp32, nats."""
    trajectory: Tensor
    """[M] int64, 0 .. N-1, ascending."""
    samples: tuple[Sample, ...]
    """N samples of this row, in order."""

    def to(self, device: torch.device) -> PackedRow:
        """The row with its tensors on a device; the same one where they are there."""
        if self.tokens.device == device:
            return self
        moved: dict[str, Any] = {}
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            moved[name] = value.to(device) if isinstance(value, Tensor) else value
        return PackedRow(**moved)


Cluster = list[Sample]
"""Samples that lie side by side behind one prompt."""


def clusters_of(samples: Sequence[Sample], budget: int, share: bool) -> list[Cluster]:
    """Samples that share a prompt and together fit the budget."""
    clusters: list[Cluster] = []
    size = 0
    for sample in samples:
        grown = size + len(sample.response)
        sibling = bool(clusters) and clusters[-1][0].group == sample.group
        if share and sibling and grown <= budget:
            clusters[-1].append(sample)
            size = grown
        else:
            clusters.append([sample])
            size = len(sample.prompt_tokens) + len(sample.response)
    return clusters


def cluster_tokens(cluster: Cluster) -> int:
    """Tokens of a cluster in its row, its prompt counted once."""
    return len(cluster[0].prompt_tokens) + sum(len(sample.response) for sample in cluster)


def pack(samples: Sequence[Sample], row_tokens: int, share_prompts: bool = True) -> list[PackedRow]:
    """Rows of at most ``row_tokens`` tokens, first fit in the order given.

    Args:
        samples: members of a group stand side by side; without loss-carrying tokens they are left out.
        row_tokens: token budget of a row.
        share_prompts: forward the prompt of a group once.
    """
    useful = [sample for sample in samples if sample.carries_loss.any()]
    rows: list[list[Cluster]] = []
    room: list[int] = []
    for cluster in clusters_of(useful, row_tokens, share_prompts):
        need = cluster_tokens(cluster)
        index = next((i for i, left in enumerate(room) if left >= need), None)
        if index is None:
            rows.append([cluster])
            room.append(row_tokens - need)
        else:
            rows[index].append(cluster)
            room[index] -= need
    return [build_row(clusters) for clusters in rows]


def build_row(clusters: Sequence[Cluster]) -> PackedRow:
    """One row of these clusters, in this order."""
    tokens, positions, sources, blocks = [], [], [], []
    start = 0
    for cluster in clusters:
        prompt = cluster[0].prompt_tokens
        tokens.append(prompt)
        positions.append(np.arange(len(prompt)))
        cursor = start + len(prompt)
        for sample in cluster:
            length = len(sample.response)
            tokens.append(sample.response)
            positions.append(np.arange(len(prompt), len(prompt) + length))
            # The first token is predicted by the end of the prompt, the others by their predecessor.
            predictor = np.arange(cursor - 1, cursor + length - 1)
            predictor[0] = start + len(prompt) - 1
            sources.append(predictor[sample.carries_loss])
            cursor += length
        lengths = [len(sample.response) for sample in cluster]
        shared = Block(start, len(prompt), tuple(lengths))
        blocks.append(shared if len(cluster) > 1 else Block(start, cursor - start))
        start = cursor
    samples = [sample for cluster in clusters for sample in cluster]
    counts = [int(sample.carries_loss.sum()) for sample in samples]
    return PackedRow(
        tokens=torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
        positions=torch.from_numpy(np.concatenate(positions).astype(np.int64)),
        blocks=tuple(blocks),
        source=torch.from_numpy(np.concatenate(sources).astype(np.int64)),
        target=_carried(samples, "response", torch.int64),
        inverse_temperature=_carried(samples, "inverse_temperature", torch.float32),
        behaviour_logprob=_carried(samples, "behaviour_logprob", torch.float32),
        trajectory=torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts)),
        samples=tuple(samples),
    )


def blank_row() -> PackedRow:
    """The shortest row there is, of no sample: forwarded by a rank that has none while others have one."""
    nothing, zero = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    return PackedRow(
        tokens=nothing, positions=nothing, blocks=(Block(0, 1),), source=nothing, target=nothing,
        inverse_temperature=torch.ones(1), behaviour_logprob=zero, trajectory=nothing, samples=(),
    )


def _carried(samples: list[Sample], name: str, dtype: torch.dtype) -> Tensor:
    parts = [getattr(sample, name)[sample.carries_loss] for sample in samples]
    return torch.from_numpy(np.concatenate(parts)).to(dtype)

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from engine.records.trajectory import FinishReason, Group, Segment, Trajectory, Verdict
from engine.records.version import PolicyVersion
from tests.small_models import VOCABULARY, tiny_network

SEGMENT_TOKENS = 3


def make_group(
    group_id: int,
    scores: Sequence[float],
    lengths: Sequence[int],
    *,
    versions: Sequence[PolicyVersion] = (PolicyVersion(0, 0),),
    finish_reason: FinishReason = FinishReason.stop,
    temperature: float = 0.8,
    unsampled: bool = False,
) -> Group:
    """A group of random tokens, in segments of a few tokens that walk through ``versions``."""
    draw = np.random.default_rng([7, group_id])
    trajectories = []
    for number, length in enumerate(lengths):
        tokens = draw.integers(2, VOCABULARY, length).astype(np.int32)
        logprob = -draw.random(length).astype(np.float32) * 5
        sampled = np.ones(length, bool)
        if unsampled:
            sampled[1::4] = False
            logprob[~sampled] = 0.0
        starts = range(0, length, SEGMENT_TOKENS)
        segments = tuple(
            Segment(tokens[start : start + SEGMENT_TOKENS], sampled[start : start + SEGMENT_TOKENS],
                    logprob[start : start + SEGMENT_TOKENS], version, temperature, version)
            for start, version in (
                (start, versions[min(index, len(versions) - 1)]) for index, start in enumerate(starts)
            )
        )
        key = group_id * 10 + number
        trajectories.append(Trajectory(key, group_id, "p", 0, segments, finish_reason))
    return Group(
        group_id, "p", draw.integers(2, VOCABULARY, 5 + group_id % 3).astype(np.int32), tuple(trajectories),
        tuple(Verdict(score, score >= 1.0, "", "math") for score in scores),
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors on a busy machine: a second thread would mostly wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def group() -> Callable[..., Group]:
    return make_group


@pytest.fixture
def groups() -> list[Group]:
    """Four groups of three: with spread, without spread, with tokens that nobody sampled."""
    return [
        make_group(0, (1.0, 0.0, 0.0), (5, 9, 3)),
        make_group(1, (1.0, 1.0, 1.0), (4, 6, 2)),
        make_group(2, (0.0, 1.0, 0.25), (12, 1, 7), unsampled=True, temperature=1.3),
        make_group(3, (0.0, 1.0, 1.0), (6, 6, 8)),
    ]


@pytest.fixture
def network() -> Callable[..., Any]:
    """A tiny random Llama, the same for the same seed."""

    def build(seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
        built = tiny_network("llama", seed)
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.data = parameter.data.to(dtype)
        return built

    return build

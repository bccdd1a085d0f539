"""What tests of several rooms share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests.rank_pool import RankPool


@pytest.fixture(scope="session")
def rank_pool() -> Iterator[RankPool]:
    """Processes that can be the ranks of a learner."""
    with RankPool() as pool:
        yield pool


@pytest.fixture(autouse=True)
def no_early_ray() -> Iterator[None]:
    """Ray reads its token settings once, when it is imported: too early, and every later session is refused."""
    yield
    # vLLM imports Ray by itself, in an environment of its own where sessions are processes of their own.
    early = "ray" in sys.modules and "vllm" not in sys.modules and "RAY_AUTH_MODE" not in os.environ
    assert not early, "this test imports ray before a session has set its token: put a stand-in into sys.modules"

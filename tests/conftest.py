"""What tests of several rooms share."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.rank_pool import RankPool


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was not tested, and why: no nvcc, no GPU. One line a reason; pytest's own -rs has one a test."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"skipped {count}: {reason}")


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

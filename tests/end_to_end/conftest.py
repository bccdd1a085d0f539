"""Shared runs: what a run gives that nobody disturbed."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.end_to_end.harness import Life, train


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> dict[str, Any]:
    """Summary of a synchronous run in one process."""
    return train(tmp_path_factory.mktemp("undisturbed") / "run", "learning.checkpoint_every=1")


@pytest.fixture
def live(tmp_path) -> Iterator[Callable[..., Life]]:
    """Start runs in processes of their own; what a failed test leaves of them is ended."""
    lives: list[Life] = []

    def start(*overrides: str, fault: str = "", name: str = "run") -> Life:
        lives.append(Life(tmp_path / name, *overrides, fault=fault))
        return lives[-1]

    yield start
    for life in lives:
        life.close()

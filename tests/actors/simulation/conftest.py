"""Runs that left a trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.config.run import RunConfig
from tests.end_to_end.harness import ASYNC, train


@dataclass
class Recorded:
    """A run, its configuration and its summary."""

    folder: Path
    config: RunConfig
    summary: dict[str, Any]


@pytest.fixture(scope="package", params=[(), ASYNC], ids=["sync", "async"])
def recorded(request: pytest.FixtureRequest, configured: Callable[..., RunConfig],
             tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("recorded")
    overrides = ("learning.updates=4", *request.param)
    return Recorded(folder, configured(*overrides), train(folder, *overrides))

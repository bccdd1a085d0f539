from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.conftest import pytest_terminal_summary


def test_every_reason_of_a_skip_is_said_once() -> None:
    lines: list[str] = []
    reasons = ["Skipped: no nvcc", "Skipped: no GPU", "Skipped: no GPU"]
    reporter: Any = SimpleNamespace(
        stats={"skipped": [SimpleNamespace(longrepr=("test_x.py", 1, reason)) for reason in reasons]},
        write_line=lines.append,
    )
    pytest_terminal_summary(reporter)
    assert lines == ["skipped 2: no GPU", "skipped 1: no nvcc"]


def test_nothing_is_said_where_nothing_was_skipped() -> None:
    pytest_terminal_summary(SimpleNamespace(stats={}, write_line=None))  # type: ignore[arg-type]

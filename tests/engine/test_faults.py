from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine import faults
from engine.errors import ConfigError


def reach_in_child(plan: str, folder: Path, times: int) -> int:
    code = f"from engine.faults import reach\nfor _ in range({times}): reach('judge.judge')\nprint('passed')"
    child = subprocess.run(
        [sys.executable, "-c", code], env={"PERILUNE_FAULT": plan, "PERILUNE_FAULT_DIR": str(folder)},
        cwd=Path(__file__).parents[2], capture_output=True, timeout=60, check=False,
    )
    return child.returncode


def test_a_fault_fires_at_the_nth_time_and_never_again(tmp_path: Path) -> None:
    plan = "judge.judge:2:KILL"
    assert reach_in_child(plan, tmp_path, times=1) == 0
    assert reach_in_child(plan, tmp_path, times=2) == -signal.SIGKILL
    assert reach_in_child(plan, tmp_path, times=5) == 0, "its mark remains"


def test_without_a_plan_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.FAULT, raising=False)
    faults.reach("anything")


@pytest.mark.parametrize("text", ["judge", "judge:x:KILL", "judge:1:NOSUCH"])
def test_a_plan_that_cannot_be_read_says_how_to_write_it(text: str) -> None:
    with pytest.raises(ConfigError, match="point:nth:signal"):
        faults.parse(text)


def test_a_plan_without_a_folder_for_its_marks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.FAULT, "here:1:TERM")
    monkeypatch.delenv(faults.FOLDER, raising=False)
    monkeypatch.setattr(faults, "_reached", faults.Counter())
    with pytest.raises(ConfigError, match="folder"):
        faults.reach("here")

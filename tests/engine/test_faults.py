"""Faults fire where and when they are told to, and once."""

import signal
import subprocess
import sys

import pytest

from engine import faults
from engine.errors import ConfigError

CODE = "from engine.faults import reach\nfor _ in range(5): reach('here'); print('passed', flush=True)"


@pytest.fixture
def planned(monkeypatch, tmp_path):
    monkeypatch.setattr(faults, "_reached", faults.Counter())
    monkeypatch.setenv(faults.FOLDER, str(tmp_path))
    sent = []
    monkeypatch.setattr(faults.os, "kill", lambda pid, number: sent.append(number))
    return lambda text: monkeypatch.setenv(faults.FAULT, text) or sent


def test_without_a_plan_nothing_happens(monkeypatch):
    monkeypatch.delenv(faults.FAULT, raising=False)
    faults.reach("here")


def test_the_nth_time_counts_for_each_point_alone(planned):
    sent = planned("here:2:TERM,there:1:INT")
    faults.reach("here")
    assert sent == []
    faults.reach("there")
    faults.reach("here")
    faults.reach("here")
    assert sent == [signal.SIGINT, signal.SIGTERM]


def test_a_fault_of_an_earlier_life_does_not_fire_again(planned, tmp_path):
    sent = planned("here:1:KILL")
    (tmp_path / "here").write_text("1")
    faults.reach("here")
    assert sent == []


def test_the_process_really_dies_and_its_successor_does_not(tmp_path):
    environment = {faults.FAULT: "here:3:KILL", faults.FOLDER: str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True,
                       timeout=60, check=False)
        for _ in range(2)
    )
    assert first.returncode == -signal.SIGKILL
    assert first.stdout == "passed\n" * 2
    assert second.stdout == "passed\n" * 5
    assert int((tmp_path / "here").read_text()) > 0


@pytest.mark.parametrize("text", ["here", "here:one:KILL", "here:1:NOTHING", "here:1:KILL,"])
def test_a_plan_that_cannot_be_read_is_refused(planned, text):
    planned(text)
    with pytest.raises(ConfigError, match="point:nth:signal"):
        faults.reach("elsewhere")


def test_a_plan_needs_a_folder_for_its_marks(planned, monkeypatch):
    planned("here:1:KILL")
    monkeypatch.delenv(faults.FOLDER)
    with pytest.raises(ConfigError, match="PERILUNE_FAULT_DIR"):
        faults.reach("here")

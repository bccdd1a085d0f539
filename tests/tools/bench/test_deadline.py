from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from typing import Any

import pytest

from tools.bench import deadline
from tools.bench.deadline import within

# Says when it is ready, then waits for SIGTERM.
POLITE = """
import signal, sys
def heard(*_):
    print("ended mine", flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, heard)
print("ready", flush=True)
signal.pause()
"""
# Neither it nor its child listens to SIGTERM; the child holds the output.
DEAF = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
wait = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
subprocess.run([sys.executable, "-c", wait])
"""


class Interrupted(subprocess.Popen[str]):
    """A signal arrives while somebody waits for it."""

    signals = 1

    def communicate(self, *arguments: Any, **options: Any) -> tuple[str, str]:
        if self.signals:
            self.signals -= 1
            raise SystemExit(143)
        return super().communicate(*arguments, **options)


def started(program: str, own_session: bool = False,
            kind: type[subprocess.Popen[str]] = subprocess.Popen) -> subprocess.Popen[str]:
    """A process that has said that it is ready."""
    process = kind([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=own_session)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_output_of_one_that_ends_in_time() -> None:
    process = subprocess.Popen([sys.executable, "-c", "print('said')"], stdout=subprocess.PIPE, text=True)
    assert within(process, 60.0, 1.0) == ("said\n", False)


def test_one_that_is_late_may_end_what_it_started() -> None:
    process = started(POLITE)
    assert within(process, 0.0, 60.0) == ("ended mine\n", True)
    assert process.returncode == 5


def test_one_that_does_not_listen_is_killed_with_its_group() -> None:
    process = started(DEAF, own_session=True)
    assert within(process, 0.0, 0.2, partial(os.killpg, process.pid, signal.SIGKILL)) == ("", True)
    assert process.returncode == -signal.SIGKILL


def test_output_that_somebody_else_holds_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "SWEEP_S", 0.2)
    process = started(DEAF, own_session=True)
    output, late = within(process, 0.0, 0.2)
    os.killpg(process.pid, signal.SIGKILL)  # the group outlives its first process
    assert late
    assert "still holds its output" in output


def test_who_is_interrupted_ends_its_child_first() -> None:
    process = started(POLITE, kind=Interrupted)
    with pytest.raises(SystemExit):
        within(process, 60.0, 60.0)
    assert process.returncode == 5

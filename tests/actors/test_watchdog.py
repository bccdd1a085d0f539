"""Processes of a session are known by what they write into its folder, and end with it."""

import os
import signal
import subprocess
import sys

import pytest

from actors.watchdog import processes_of, start_watchdog, sweep


@pytest.fixture
def child():
    """Start processes that wait for their input with a file of a folder open."""
    children = []

    def start(folder, mode="wb"):
        folder.mkdir(exist_ok=True)
        with (folder / "log").open(mode) as log:
            children.append(subprocess.Popen(
                [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[log.fileno()]
            ))
        return children[-1]

    yield start
    for one in children:
        one.kill()
        one.communicate(timeout=10)


def test_who_writes_into_the_folder_is_of_the_session(tmp_path, child):
    session = tmp_path / "session"
    mine = child(session)
    child(session, "rb")
    child(tmp_path / "session-of-another")
    with (session / "own").open("wb"):
        assert processes_of(session) == [mine.pid]


def test_a_sweep_ends_the_session_and_nobody_else(tmp_path, child):
    session = tmp_path / "session"
    mine, other = child(session), child(tmp_path / "other")
    assert sweep(session, 20.0) == []
    assert mine.wait(10) == -signal.SIGKILL
    assert other.poll() is None
    assert not session.exists()


def test_the_watchdog_sweeps_once_its_pipe_is_closed(tmp_path, child):
    session = tmp_path / "session"
    mine = child(session)
    watchdog = start_watchdog(session)
    try:
        assert os.getsid(watchdog.pid) != os.getsid(0), "Ctrl-C does not reach it"
        watchdog.communicate(timeout=30)
    finally:
        watchdog.kill()
    assert mine.wait(10) == -signal.SIGKILL
    assert not session.exists()

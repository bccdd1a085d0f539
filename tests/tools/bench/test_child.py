from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.errors import ActorError
from tools.bench.child import Child

PROGRAM = """
from tools.bench.child import Replies
replies = Replies()
print("noise that is no answer")
for turn in range(2):
    replies.wait()
    replies.send({"turn": turn})
raise SystemExit("had enough")
"""
HANGS = "from tools.bench.child import Replies\nreplies = Replies()\nreplies.wait()\nreplies.wait()\n"


@contextmanager
def child(program: str, deadline_s: float) -> Iterator[Child]:
    made = Child("other", [sys.executable, "-c", program], deadline_s)
    try:
        yield made
    finally:
        made.close()


def test_one_line_asks_for_one_repeat_and_what_it_prints_is_no_answer() -> None:
    with child(PROGRAM, 60.0) as other:
        assert [other.ask()["turn"] for _ in range(2)] == [0, 1]
        with pytest.raises(ActorError, match="had enough"):
            other.ask()


def test_a_process_that_does_not_answer_is_ended() -> None:
    with child(HANGS, 2.0) as other, pytest.raises(ActorError, match="no answer in 2 s"):
        other.ask()


def test_a_process_whose_asker_is_gone_ends() -> None:
    with child(PROGRAM, 60.0) as other:
        assert other._process.stdin is not None
        other._process.stdin.close()
        assert other._process.wait(60.0) == 0


def test_a_process_has_variables_of_its_own() -> None:
    program = ("import os; from tools.bench.child import Replies; replies = Replies(); replies.wait();"
               "replies.send({'ops': os.environ['PERILUNE_OPS']})")
    other = Child("other", [sys.executable, "-c", program], 60.0, {"PERILUNE_OPS": "reference"})
    assert other.ask() == {"ops": "reference"}
    other.close()


PARENT = """
import subprocess, sys
from tools.bench.child import Replies
replies = Replies()
replies.wait()
other = subprocess.Popen([sys.executable, "-c", "print('lives', flush=True); import time; time.sleep(600)"],
                         stdout=subprocess.PIPE)
other.stdout.readline()
replies.send({"pid": other.pid})
"""


@pytest.mark.parametrize("rest", ["replies.wait()", "other.wait()", ""], ids=["waits", "hangs", "ended"])
def test_what_a_process_started_ends_with_it(rest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.bench.child._GRACE_S", 5.0 if rest == "replies.wait()" else 0.2)
    with child(PARENT + rest, 60.0) as other:
        pid = other.ask()["pid"]
        gone = os.pidfd_open(pid)
        assert not select.select([gone], [], [], 0.0)[0]
    assert select.select([gone], [], [], 10.0)[0]
    os.close(gone)


def test_who_waits_puts_away_what_it_has(tmp_path: Path) -> None:
    file = tmp_path / "left"
    program = f"import atexit, pathlib; atexit.register(pathlib.Path({str(file)!r}).unlink)\n"
    file.touch()
    with child(program + PROGRAM, 60.0) as other:
        other.ask()
    assert not file.exists()


def test_closing_twice_is_harmless() -> None:
    other = Child("other", [sys.executable, "-c", PROGRAM], 60.0)
    other.close()
    other.close()

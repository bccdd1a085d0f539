"""A run in a process of its own: here a few lines of Python stand in for it."""

import json
import os
import re
import sys

import pytest

from engine.errors import RunFolderError
from tests.tools.run_folders import SMOKE, write_run
from tools.ablation import cells as room
from tools.ablation.arms import Match
from tools.ablation.cells import run_cell
from tools.ablation.matching import match_arms
from tools.ablation.matrix import cells_of


@pytest.fixture
def cell(ablation):
    return first_of(ablation())


def first_of(config):
    """The cell of ``sync`` and seed 0, whenever it is run."""
    return next(cell for cell in cells_of(config, match_arms(config)) if cell.name == "sync seed 0")


def stands_in(monkeypatch, program):
    """What is started instead of a run."""
    popen = room.subprocess.Popen
    monkeypatch.setattr(room.subprocess, "Popen", lambda command, **options: popen(
        [sys.executable, "-u", "-c", program, *command[3:]], **options))


def test_a_run_is_told_its_options_and_leaves_what_it_prints(cell, monkeypatch):
    stands_in(monkeypatch, "import sys; print(*sys.argv[1:], sep='\\n')")
    started = []
    ended = run_cell(cell, 60.0, started.append)
    assert ended.failed == "it ended before its last update"
    assert len(started) == 1
    assert ended.foreign is None or 0.0 <= ended.foreign <= 1.0
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", ended.begun)
    assert cell.last_words.splitlines() == [
        "experiment=smoke", "learning.updates=4", "seed=0", f"run.dir={cell.folder}", "run.exists=resume"]


def test_a_run_that_fails_says_so_and_its_last_words_are_kept_over_tries(cell, monkeypatch):
    stands_in(monkeypatch, "print('x\\n' * 50); raise SystemExit('error: no luck')")
    for _ in range(2):
        assert run_cell(cell, 60.0, lambda _: None).failed == "exit code 1"
    assert cell.last_words.splitlines() == [*["x"] * 11, "error: no luck"]
    assert cell.log.read_text().count("no luck") == 2


@pytest.mark.parametrize(("heeds", "grace_s", "word"), [(True, 60.0, "saved"), (False, 0.2, "")])
def test_a_run_past_its_deadline_is_asked_to_end_and_then_killed(cell, monkeypatch, heeds, grace_s, word):
    program = ("import signal, sys\n"
               "signal.signal(signal.SIGTERM, lambda *_: HEEDS and (print('saved'), sys.exit(0)))\n"
               "print('begun')\nwhile True: signal.pause()")
    stands_in(monkeypatch, program.replace("HEEDS", str(heeds)))
    monkeypatch.setattr(room, "GRACE_S", grace_s)

    def begun(process):
        # The deadline may pass only when it can hear; the log tells.
        while "begun" not in cell.log.read_text():
            os.sched_yield()

    ended = run_cell(cell, 0.05, begun)
    assert ended.failed == "not done in 0 s"
    assert word in cell.last_words


def test_only_a_whole_run_has_a_summary(cell, ablation):
    assert cell.summary is None
    write_run(cell.folder)
    assert cell.summary["updates"] == 4
    timed = ablation(match=Match.seconds, amount=3)
    longer = first_of(timed)
    assert longer.summary is not None, "its time was up"
    file = cell.folder / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"updates": 2, "train_seconds": 2.0}))
    assert cell.summary is None
    assert longer.summary is None


def test_a_folder_with_other_options_is_refused(cell):
    cell.require_same_options()
    write_run(cell.folder)
    cell.require_same_options()
    file = cell.folder / "config.yaml"
    file.write_text(file.read_text().replace("tau: 0.1", "tau: 0.2"))
    with pytest.raises(RunFolderError, match=r"other options \(loss\.tau\)"):
        cell.require_same_options()


@pytest.mark.parametrize(("address", "share"), [("local", 0.25), ("10.0.0.1:6379", None)])
def test_others_are_looked_for_while_the_run_lives(ablation, monkeypatch, address, share):
    cell, looks = first_of(ablation(base=[*SMOKE, f"cluster.address={address}"])), []

    class Work:
        share = 0.25

        def look(self):
            looks.append(len(looks))
            if len(looks) == 3:
                (cell.folder.parent / "go").touch()

    monkeypatch.setattr(room, "ForeignWork", Work)
    monkeypatch.setattr(room, "_LOOK_S", 0.01)
    stands_in(monkeypatch, f"import os\nwhile not os.path.exists({str(cell.folder.parent / 'go')!r}): os.sched_yield()")
    assert run_cell(cell, 60.0, lambda _: None).foreign == share
    assert len(looks) >= 3


def test_how_a_run_was_made_lies_beside_it(cell):
    assert cell.tries == []
    cell.write_tries([{"failed": "exit code 1"}, {"failed": ""}])
    assert cell.tries == [{"failed": "exit code 1"}, {"failed": ""}]
    assert not cell.folder.exists(), "a run's folder is the run's own"

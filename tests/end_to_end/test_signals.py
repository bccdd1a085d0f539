"""Ctrl-C and SIGTERM: a checkpoint, then nothing is left; a second signal ends at once."""

import json
import os
import signal

import pytest

from tests.end_to_end.harness import ASYNC, RAY, train, wait_until
from tools.audit import audit

LONG = ("learning.updates=400", "run.quiet=false")
PLACES = [pytest.param((), id="serial"), pytest.param(RAY, id="ray", marks=pytest.mark.ray)]


def under_way(life):
    """Stopped in an update, like a run that somebody watches for a while."""
    return life.stopped_at("learner.update")


def interrupt(life, number):
    """As a terminal does: the whole process group hears it."""
    os.killpg(life.process.pid, number)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", [
    pytest.param(signal.SIGINT, id="ctrl-c"), pytest.param(signal.SIGTERM, id="term", marks=pytest.mark.slow),
])
def test_a_signal_leaves_a_checkpoint_from_which_the_run_goes_on(live, place, number):
    life = live(*place, *ASYNC, *LONG, fault="learner.update:3:STOP")
    stopped = under_way(life)
    if number is signal.SIGINT:
        interrupt(life, number)
    else:
        os.kill(life.process.pid, number)
    os.kill(stopped, signal.SIGCONT)
    assert life.ended() == 0, life.says()
    life.nothing_left(10.0)
    assert "go on with run.exists=resume" in life.says()
    summary = json.loads((life.folder / "summary.json").read_text())
    assert 0 < summary["updates"] < 400
    assert summary["ledger"]["closes"]
    audit(life.folder)
    updates = summary["updates"] + 2
    resumed = train(life.folder, *ASYNC, f"learning.updates={updates}", "run.exists=resume")
    assert resumed["updates"] == updates
    assert resumed["max_staleness_seen"] <= 2
    assert audit(life.folder)["carried_loss"] == resumed["trained_tokens"] > summary["trained_tokens"]


@pytest.mark.parametrize("place", [
    pytest.param((), id="serial"), pytest.param(RAY, id="ray", marks=[pytest.mark.ray, pytest.mark.slow]),
])
def test_the_second_signal_ends_at_once(live, place):
    """Over Ray the stopped learner keeps the run from coming to rest; alone, both signals wait for it."""
    life = live(*place, *ASYNC, *LONG, fault="learner.update:3:STOP")
    stopped = under_way(life)
    interrupt(life, signal.SIGINT)
    if place:
        wait_until(lambda: "stopping" in life.says(), "the driver hears")
    os.kill(life.process.pid, signal.SIGTERM)
    if not place:
        os.kill(stopped, signal.SIGCONT)
    assert life.ended() == 130, life.says()
    life.nothing_left(10.0)
    assert not (life.folder / "summary.json").exists()

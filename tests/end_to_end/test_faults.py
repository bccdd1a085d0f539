"""Actors die where it hurts most; the run goes on, loses nothing, trains nothing twice, leaves nothing.

The matrix kills every actor at every moment: while a generator decodes, between its verifying new weights
and its swapping them in, and between a checkpoint's being written and its getting its name. At each of them
whoever got there is stopped, the victim is killed, and the other goes on. All thirty cells make sense over
Ray, where actors are processes of their own.
"""

import json
import os
import signal
from typing import Any

import pytest

from tests.end_to_end.harness import ASYNC, RAY, Life, train, with_signal
from tools.audit import audit

pytestmark = pytest.mark.ray
CHECKPOINTED = ("learning.checkpoint_every=1", "cluster.max_restarts=8")
VICTIMS = ("driver", "generator", "learner", "judge", "replay")
# The third decoded token of the second update; the first weights after the very first; the second
# checkpoint, so that there is one to go back to.
MOMENTS = {"decoding": ("generator.decode", 24 + 3), "swapping": ("generator.swap", 2),
           "checkpointing": ("checkpoint.written", 2)}
SCHEDULES = {"sync": (), "async": ASYNC}


def hurt(life: Life, victim: str, point: str) -> None:
    """Kill the victim at a moment at which somebody else, or itself, is stopped."""
    stopped = life.stopped_at(point)
    killed = life.actor(victim)
    os.kill(killed, signal.SIGKILL)
    if killed != stopped:
        with_signal(stopped, signal.SIGCONT)


def outcome(life: Life, *overrides: str) -> dict[str, Any]:
    """Wait for the end, in another life where the driver was killed; the summary."""
    if life.ended() == -signal.SIGKILL:
        life.no_process_left()
        return train(life.folder, "run.exists=resume", *overrides)
    assert life.process.returncode == 0, life.says()
    return json.loads((life.folder / "summary.json").read_text())


def agrees(life: Life, summary: dict[str, Any], bound: int, updates: int) -> None:
    """Everything that must hold however a run was hurt."""
    life.nothing_left()
    assert summary["updates"] == updates
    assert summary["ledger"]["closes"]
    assert summary["max_staleness_seen"] <= bound
    found = audit(life.folder)
    assert found["carried_loss"] == summary["trained_tokens"] > 0
    assert found["checkpoints"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("victim", VICTIMS)
def test_the_matrix(live, undisturbed, victim, moment, schedule):
    point, nth = MOMENTS[moment]
    overrides = (*SCHEDULES[schedule], *CHECKPOINTED)
    life = live(*RAY, *overrides, fault=f"{point}:{nth}:STOP")
    hurt(life, victim, point)
    summary = outcome(life, *overrides)
    agrees(life, summary, bound=2 if schedule == "async" else 0, updates=3)
    if schedule == "sync":
        assert summary["weights_digest"] == undisturbed["weights_digest"]
    # An actor is missed when it is next asked, and by then the judge of an asynchronous run may have judged all.
    asked_again = victim != "judge" or schedule == "sync" or moment == "decoding"
    if victim != "driver" and asked_again:
        assert summary["restarts"] >= 1


def test_a_synchronous_run_survives_three_deaths_without_losing_a_bit(live, undisturbed):
    """A generator while it decodes, a judge while it judges, the learner between publishing and saying so."""
    faults = ("generator.decode:27:KILL", "judge.judge:2:KILL", "learner.publish:3:KILL")
    life = live(*RAY, *CHECKPOINTED, fault=",".join(faults))
    summary = outcome(life)
    agrees(life, summary, bound=0, updates=3)
    assert all((life.faults / fault.partition(":")[0]).exists() for fault in faults)
    assert summary["restarts"] == 3
    assert summary["weights_digest"] == undisturbed["weights_digest"]


def test_an_asynchronous_run_survives_the_death_of_its_driver(live):
    """Killed when a checkpoint is written but has no name yet; it goes on without Ray."""
    life = live(*RAY, *ASYNC, *CHECKPOINTED, fault="checkpoint.written:2:KILL")
    summary = outcome(life, *ASYNC, *CHECKPOINTED)
    assert life.process.returncode == -signal.SIGKILL
    agrees(life, summary, bound=2, updates=3)
    assert not list((life.folder / "checkpoints").glob(".tmp-*"))


@pytest.mark.slow
@pytest.mark.parametrize("point", ["learner.update", "learner.publish", "replay.deliver", "driver.updated",
                                   "checkpoint.renamed", "judge.judge"])
def test_a_death_at_a_point_of_its_own(live, undisturbed, point):
    life = live(*RAY, *CHECKPOINTED, fault=f"{point}:2:KILL")
    summary = outcome(life, *CHECKPOINTED)
    agrees(life, summary, bound=0, updates=3)
    assert (life.faults / point).exists()
    assert summary["weights_digest"] == undisturbed["weights_digest"]

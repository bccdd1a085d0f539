"""Each actor in turn stops answering: a sentence and a picture say which, and the run goes on once it may."""

import json
import os
import signal
import time

import pytest

from tests.end_to_end.harness import ASYNC, RAY, wait_until
from tools.doctor import diagnose
from tools.replay import replay
from tools.top import frame

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STALLS = [
    pytest.param("generator.decode:27:STOP", "generator-0#1", "advance", id="generator"),
    pytest.param("judge.judge:3:STOP", "judge#1", "judge", id="judge"),
    pytest.param("learner.update:2:STOP", "learner", "update", id="learner"),
    pytest.param("replay.deliver:5:STOP", "replay", "deliver", id="replay"),
    pytest.param("evaluator.decode:3:STOP", "evaluator#1", "advance", id="evaluator"),
]


@pytest.mark.parametrize(("fault", "actor", "method"), STALLS)
def test_an_actor_that_stalls_is_named_and_the_run_goes_on(live, fault, actor, method):
    life = live(*RAY, *ASYNC, "run.quiet=false", "cluster.stall_warning_s=10", "learning.updates=4", fault=fault)
    stopped = life.stopped_at(fault.partition(":")[0])
    found = wait_until(lambda: list((life.folder / "stalls").glob(f"*-{actor}-{method}-warning.json")), "a stall",
                       why=life.says)
    stall = json.loads(found[0].read_text())
    wait_until(lambda: actor in " ".join(diagnose(life.folder)), "the doctor names it")
    said = "\n".join(diagnose(life.folder))
    assert f"live, process {life.process.pid}" in said
    assert frame(life.folder, time.time())[1], "it still runs"
    os.kill(stopped, signal.SIGCONT)
    assert life.ended() == 0, life.says()
    assert f"stall: {stall['sentence']}" in life.says()
    assert (stall["actor"], stall["method"]) == (actor, method)
    if actor != "evaluator#1":
        assert stall["groups"], "the picture holds every group"
        assert stall["mailboxes"]
    life.nothing_left()
    summary = json.loads((life.folder / "summary.json").read_text())
    again = replay(life.folder, life.folder.with_name("again"))
    assert again["repeated"] == summary["weights_digest"], again["parted"]


def test_deaths_over_ray_repeat_in_one_process(live):
    """Two generators, of which one dies; the judge dies; the learner dies, and the run goes on from a checkpoint."""
    faults = ("generator.decode:27:KILL", "judge.judge:4:KILL", "learner.publish:4:KILL")
    life = live(*RAY, *ASYNC, "learning.updates=5", "generator.num_generators=2", "learning.checkpoint_every=1",
                "cluster.max_restarts=8", fault=",".join(faults))
    assert life.ended() == 0, life.says()
    summary = json.loads((life.folder / "summary.json").read_text())
    assert summary["restarts"] >= 2
    again = replay(life.folder, life.folder.with_name("again"))
    assert again["repeated"] == summary["weights_digest"], again["parted"]
    assert again["updates"] == 5

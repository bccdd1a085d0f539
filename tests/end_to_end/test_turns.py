"""Generators and learner take turns on the same devices, whatever else happens meanwhile."""

import json

import pytest

from tests.end_to_end.harness import RAY, train
from tools.audit import audit

SHARED = ("cluster.placement=colocated", "learning.checkpoint_every=1")
# More updates than the window holds groups: what is drawn after the first is cut at its rounds while others are
# learned, whenever answers happen to end.
ROUNDS = ("schedule=iterative", "schedule.max_staleness=3", "schedule.round_budget_tokens=6",
          "schedule.in_flight=keep_cache", "schedule.batch_groups=1", "learning.updates=6")


def test_unfinished_answers_outlive_the_turns(tmp_path):
    """Their keys do not: they are computed again, under the weights of the day."""
    summary = train(tmp_path / "run", *SHARED, *ROUNDS)
    assert summary["updates"] == 6
    assert summary["ledger"]["closes"]
    assert summary["trajectories_with_2_versions"] > 0
    assert audit(tmp_path / "run")["carried_loss"] == summary["trained_tokens"] > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    names = [f"hybrid/{what}_seconds" for what in ("sleep", "onload", "offload", "wake")]
    assert all(line[name] >= 0 for line in lines if "hybrid/sleep_seconds" in line for name in names)
    assert sum("hybrid/sleep_seconds" in line for line in lines) == 6


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("fault", ["generator.decode:27:KILL", "evaluator.decode:30:KILL", "learner.update:2:KILL"])
def test_a_death_between_turns_loses_no_bit(live, undisturbed, fault):
    life = live(*RAY, *SHARED, "evaluation.every=1", fault=fault)
    assert life.ended() == 0, life.says()
    summary = json.loads((life.folder / "summary.json").read_text())
    assert (life.faults / fault.partition(":")[0]).exists()
    assert summary["restarts"] >= 1
    assert summary["weights_digest"] == undisturbed["weights_digest"]
    life.nothing_left()

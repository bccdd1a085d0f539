"""Versions that are kept and evaluated once training has ended: the same answers, and a clock without them."""

import json

import pytest

from actors.launch import compose
from actors.reenactment import reenact
from tests.end_to_end.harness import ASYNC, LEARNS, RAY, train

EVERY = ("evaluation.every=1", "learning.updates=4")


def test_evaluated_later_is_evaluated_alike(tmp_path):
    at_once = train(tmp_path / "at_once", *EVERY)
    later = train(tmp_path / "later", *EVERY, "evaluation.deferred=true")
    assert later["weights_digest"] == at_once["weights_digest"]
    assert later["accuracy"] == at_once["accuracy"]
    assert list(later["accuracy"]) == ["0", "1", "2", "3", "4"]
    assert list((tmp_path / "later" / "evaluations").iterdir()) == []
    lines = [json.loads(line) for line in (tmp_path / "later" / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines if "heldout/accuracy" in line] == [0, 1, 2, 3, 4]
    last_update = max(line["seconds"] for line in lines if "learn/loss" in line)
    assert all(line["seconds"] >= last_update for line in lines if "heldout/accuracy" in line and line["update"])


def test_a_run_that_evaluates_later_is_repeated(tmp_path):
    overrides = (*ASYNC, *EVERY, "evaluation.deferred=true")
    train(tmp_path / "run", *overrides)
    config, _ = compose([*LEARNS, f"run.dir={tmp_path / 'run'}", *overrides])
    told = reenact(config, tmp_path / "run", tmp_path / "again")
    assert (told["complete"], told["parted"]) == (True, "")
    assert told["repeated"] == told["recorded"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("more", "fault"), [
    ((), "evaluator.decode:40:KILL"), (("learning.checkpoint_every=1",), "learner.update:3:KILL"),
    (("learning.num_learners=2",), ""),
])
def test_over_ray_through_deaths_and_with_two_learners(live, more, fault):
    life = live(*RAY, *ASYNC, *EVERY, "evaluation.deferred=true", *more, fault=fault)
    assert life.ended() == 0, life.says()
    summary = json.loads((life.folder / "summary.json").read_text())
    assert list(summary["accuracy"]) == ["0", "1", "2", "3", "4"]
    assert list((life.folder / "evaluations").iterdir()) == []
    assert summary["restarts"] == (1 if fault else 0)
    life.nothing_left()

"""Two learners over Ray: what they learn, where another number of them goes on, and the death of one of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.harness import RAY, train
from tools.audit import audit

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TWO = (*RAY, "learning.num_learners=2", "learning.checkpoint_every=1")


def updates_of(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "learn/loss" in line]


def test_two_learners_learn_what_one_learns_and_one_goes_on(tmp_path):
    train(tmp_path / "one", "learning.updates=1")
    (expected,) = updates_of(tmp_path / "one")
    train(tmp_path / "two", *TWO, "learning.updates=2")
    first = updates_of(tmp_path / "two")[0]
    for name in ("learn/loss", "learn/gradient_norm", "learn/logprob_gap_mean_nats"):
        assert first[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    assert 0 < first["learn/rank_tokens_min"] <= first["learn/rank_tokens_max"]
    newest = max((tmp_path / "two" / "checkpoints").glob("update-*"))
    assert len(list((newest / "learner").iterdir())) == 2
    summary = train(tmp_path / "two", "learning.updates=3", "run.exists=resume", "learning.checkpoint_every=1")
    assert summary["updates"] == 3
    assert summary["ledger"]["closes"]


def test_the_death_of_any_rank_is_healed_by_the_newest_checkpoint(live):
    life = live(*TWO, "cluster.max_restarts=4", fault="learner-1.update:2:KILL")
    life.reached("learner-1.update")
    assert life.ended() == 0, life.says()
    assert "going on from the newest checkpoint" in life.says()
    life.nothing_left()
    summary = json.loads((life.folder / "summary.json").read_text())
    assert summary["updates"] == 3
    assert summary["restarts"] == 1
    assert summary["ledger"]["closes"]
    assert audit(life.folder)["carried_loss"] == summary["trained_tokens"] > 0

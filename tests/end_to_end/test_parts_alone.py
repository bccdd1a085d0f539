"""Sampling without learning, and learning without sampling."""

import json

import pytest

from actors import training
from actors.rollouts import read_rollouts
from actors.tracing import BEGINS
from engine.errors import RunFolderError, StalenessError
from engine.records.version import PolicyVersion
from engine.trace import read_trace
from tests.end_to_end.harness import ASYNC, train
from tools.audit import audit


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    """A synchronous run that wrote down what it consumed: its folder and summary."""
    folder = tmp_path_factory.mktemp("dumped") / "run"
    return folder, train(folder, "run.dump_rollouts=true")


def learn(folder, rollouts, *overrides):
    return train(folder, "train.only=learn", f"train.rollouts={rollouts}", *overrides)


def test_learning_from_a_dump_gives_the_weights_of_the_run_that_made_it(tmp_path, dumped, undisturbed):
    folder, summary = dumped
    assert summary["weights_digest"] == undisturbed["weights_digest"], "dumping changes nothing"
    learned = learn(tmp_path / "run", folder / "rollouts")
    assert learned["weights_digest"] == summary["weights_digest"]
    assert learned["generated_tokens"] == 0
    for part in ("trajectories", "tokens"):
        assert learned["ledger"][part]["dropped"] in ({}, {"end_of_run": 0})
    assert learned["ledger"]["tokens"]["generated"] == summary["ledger"]["tokens"]["generated"]
    assert audit(tmp_path / "run")["trained"] == summary["ledger"]["trajectories"]["trained"]
    moments = [one["name"] for one in read_trace(tmp_path / "run" / "trace.json") if one["ph"] == "i"]
    assert moments == [BEGINS, *(f"version {update}" for update in (1, 2, 3))]


def test_learning_alone_goes_on_where_it_was_ended(tmp_path, dumped, monkeypatch):
    folder, summary = dumped

    def die(point):
        if (tmp_path / "run" / "checkpoints" / "update-000002").exists():
            raise KeyboardInterrupt(point)

    monkeypatch.setattr(training, "reach", die)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "run", folder / "rollouts", "learning.checkpoint_every=1")
    monkeypatch.undo()
    learned = learn(tmp_path / "run", folder / "rollouts", "learning.checkpoint_every=1", "run.exists=resume")
    assert learned["weights_digest"] == summary["weights_digest"]
    assert learned["ledger"]["closes"]
    assert audit(tmp_path / "run")["trained"] == summary["ledger"]["trajectories"]["trained"]


def test_learning_alone_makes_as_many_updates_as_there_are_files(tmp_path, dumped):
    folder, summary = dumped
    assert learn(tmp_path / "more", folder / "rollouts", "learning.updates=9")["updates"] == 3
    fewer = learn(tmp_path / "fewer", folder / "rollouts", "learning.updates=2")
    assert fewer["updates"] == 2
    assert fewer["weights_digest"] != summary["weights_digest"]


@pytest.mark.parametrize("schedule", [(), ASYNC], ids=["sync", "async"])
def test_sampling_alone_never_changes_the_version(tmp_path, schedule):
    folder = tmp_path / "run"
    summary = train(folder, "train.only=rollout", *schedule)
    files = sorted((folder / "rollouts").iterdir())
    assert [file.name for file in files] == [f"update-{index:06d}.msgpack" for index in range(3)]
    groups = [group for file in files for group in read_rollouts(file)]
    assert len(groups) == 3 * 4
    assert len({t.trajectory_id for group in groups for t in group.trajectories}) == 3 * 4 * 4
    segments = [s for group in groups for t in group.trajectories for s in t.segments]
    assert {segment.version for segment in segments} == {PolicyVersion(0, 0)}
    assert all(len(group.verdicts) == len(group.trajectories) for group in groups), "judged"
    assert summary["updates"] == 0
    assert summary["ledger"]["tokens"]["masked"] == {"recorded": sum(s.num_sampled for s in segments)}
    assert summary["ledger"]["tokens"]["carried_loss"] == 0
    audit(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(line["update"] for line in lines) == 3


def test_what_was_sampled_alone_is_stale_to_a_learner_that_moves(tmp_path):
    train(tmp_path / "run", "train.only=rollout")
    with pytest.raises(StalenessError, match="1 versions old"):
        learn(tmp_path / "strict", tmp_path / "run" / "rollouts")
    learned = learn(tmp_path / "loose", tmp_path / "run" / "rollouts", "schedule=async",
                    "schedule.max_staleness=2")
    assert learned["max_staleness_seen"] == 2
    assert learned["updates"] == 3


def test_a_folder_without_rollouts_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"train\.rollouts=.*dump_rollouts"):
        learn(tmp_path / "run", tmp_path)

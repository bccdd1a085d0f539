"""A recorded run repeats, bit for bit; a record that was bent is found at the place where it was."""

import json
import shutil
from typing import Any

import pytest

from actors import judging, training
from actors.cluster import SerialCluster
from actors.generator import Generator
from actors.launch import compose, saved
from actors.reenactment import in_one_process, read_arrivals, reenact
from actors.run import run
from engine.config.cluster import ClusterKind
from engine.errors import ActorError, ClusterError, ConfigError, RecordError, RunFolderError
from engine.records import arrival
from engine.records import event as ev
from engine.records.codec import encode
from engine.records.trajectory import Outcome
from engine.records.version import PolicyVersion
from tests.actors.conftest import SMALL
from tests.actors.fake_driver import changed
from tests.end_to_end.harness import ASYNC


def train(folder, *overrides: str) -> dict[str, Any]:
    config, text = compose([*SMALL, *ASYNC, "evaluation.every=2", f"run.dir={folder}", *overrides])
    return run(config, text)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Folder and summary of an asynchronous run."""
    folder = tmp_path_factory.mktemp("recorded") / "run"
    return folder, train(folder)


def again(folder, tmp_path, **changes: Any) -> dict[str, Any]:
    return reenact(changed(saved(folder), changes), folder, tmp_path / "again")


def bent(folder, tmp_path, bend) -> Any:
    """A copy of a run whose journal was bent."""
    copy = shutil.copytree(folder, tmp_path / "bent")
    entries = bend(read_arrivals(folder / "arrivals.msgpack"))
    (copy / "arrivals.msgpack").write_bytes(b"".join(map(encode, entries)))
    return copy


def test_an_asynchronous_run_repeats(recorded, tmp_path):
    folder, summary = recorded
    report = again(folder, tmp_path)
    assert report["repeated"] == report["recorded"] == summary["weights_digest"]
    assert (report["parted"], report["complete"], report["judged_otherwise"]) == ("", True, [])
    assert report["updates"] == 3
    assert report["entries"] == report["recorded_entries"] > 30
    twice = (tmp_path / "again" / "arrivals.msgpack").read_bytes()
    assert twice == (folder / "arrivals.msgpack").read_bytes(), "a repeated run is a recorded one"


def test_the_order_of_answers_is_obeyed_not_found(recorded, tmp_path):
    """Two answers change places in the record: the run that follows it is another one."""
    def swap(entries):
        place = next(i for i, e in enumerate(entries) if isinstance(e, arrival.Answered) and e.call == 0
                     and isinstance(entries[i + 1], ev.Judged))
        return [*entries[:place], arrival.Answered(1), *entries[place + 1 :]]

    report = again(bent(recorded[0], tmp_path, swap), tmp_path)
    assert "recorded Judged" in report["parted"]
    assert not report["complete"]


def test_other_weights_are_told_by_their_update(recorded, tmp_path):
    report = again(recorded[0], tmp_path, **{"learning.optimiser.learning_rate": 0.004})
    assert report["parted"].startswith("the weights part at update 1,")
    assert report["updates"] == 0


def test_a_digest_that_was_recorded_otherwise_is_told_by_its_update(recorded, tmp_path):
    def bend(entries):
        second = arrival.Committed(PolicyVersion(0, 2), "another")
        return [second if isinstance(e, arrival.Committed) and e.version.updates == 2 else e for e in entries]

    report = again(bent(recorded[0], tmp_path, bend), tmp_path)
    assert report["parted"].startswith("the weights part at update 2,")
    assert report["updates"] == 1


def test_a_run_that_was_cut_off_repeats_as_far_as_it_came(recorded, tmp_path):
    def cut(entries):
        return entries[: next(i for i, e in enumerate(entries) if isinstance(e, arrival.Committed)) + 5]

    folder = bent(recorded[0], tmp_path, cut)
    with (folder / "arrivals.msgpack").open("ab") as file:
        file.write(encode(arrival.Answered(0))[:-1])  # as a kill tears it
    report = again(folder, tmp_path)
    assert (report["parted"], report["complete"], report["updates"]) == ("", False, 1)
    assert report["entries"] == report["recorded_entries"]


def test_verdicts_come_as_they_were_recorded(recorded, tmp_path, monkeypatch):
    """A judge that would say something else now, or nothing, changes no bit and is named."""
    honest = judging.Judging._judged
    monkeypatch.setattr("engine.rewards.judge.Rewarder.judge", _always_failing)
    report = again(recorded[0], tmp_path)
    assert report["repeated"] == recorded[1]["weights_digest"]
    assert len(report["judged_otherwise"]) == recorded[1]["ledger"]["trajectories"]["trained"]
    assert judging.Judging._judged is honest


def _always_failing(self, questions):
    from engine.records.trajectory import Verdict

    return [Verdict.failed("none", "it is not there today", Outcome.timeout) for _ in questions]


def test_deaths_and_further_lives_repeat_too(tmp_path, monkeypatch):
    """A generator dies, then the driver between two updates; the run is resumed from its checkpoint."""
    folder, count = tmp_path / "run", 0
    honest, reach = Generator.advance, training.reach

    def dying(self, order):
        nonlocal count
        count += self._role == "generator"
        if count == 4:
            count += 1
            raise ActorError(self._name, "advance", "its process died")
        return honest(self, order)

    def crash(point):
        reach(point)
        if (folder / "checkpoints" / "update-000001").exists():
            monkeypatch.setattr(training, "reach", reach)
            raise KeyboardInterrupt

    monkeypatch.setattr(Generator, "advance", dying)
    monkeypatch.setattr(training, "reach", crash)
    with pytest.raises(KeyboardInterrupt):
        train(folder, "learning.checkpoint_every=1")
    summary = train(folder, "learning.checkpoint_every=1", "run.exists=resume")
    assert summary["restarts"] == 0
    entries = read_arrivals(folder / "arrivals.msgpack")
    assert {arrival.Died("generator-0#1"), arrival.Resumed(PolicyVersion(1, 1))} <= set(entries)
    monkeypatch.undo()
    report = again(folder, tmp_path)
    assert report["parted"] == ""
    assert report["repeated"] == summary["weights_digest"]
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["updates"] == 3


@pytest.mark.parametrize(("fate", "successor"), [("no room", ""), ("dies", "generator-1#3")])
def test_who_took_a_place_is_obeyed(tmp_path, monkeypatch, fate, successor):
    """Where the next incarnation finds no room, or dies on the way, in the recorded run only."""
    honest, start, count = Generator.advance, SerialCluster.start, 0

    def dying(self, order):
        nonlocal count
        count += self._name == "generator-1#1"
        if self._name == "generator-1#1" and count == 4:
            raise ActorError(self._name, "advance", "its process died")
        return honest(self, order)

    def started(self, name, factory, arguments, *, threads=1):
        if name == "generator-1#2":
            raise ClusterError("no room") if fate == "no room" else ActorError(name, "metrics", "it died too")
        start(self, name, factory, arguments, threads=threads)

    monkeypatch.setattr(Generator, "advance", dying)
    monkeypatch.setattr(SerialCluster, "start", started)
    summary = train(tmp_path / "run", "generator.num_generators=2")
    monkeypatch.undo()
    entries = read_arrivals(tmp_path / "run" / "arrivals.msgpack")
    place = entries.index(arrival.Died("generator-1#1"))
    assert entries[place + 1] == arrival.Replaced(successor)
    assert (ev.NobodyFollows("generator-1#1") in entries) is (successor == "")
    report = again(tmp_path / "run", tmp_path)
    assert (report["parted"], report["complete"]) == ("", True)
    assert report["repeated"] == summary["weights_digest"]


def test_a_stopped_run_repeats(tmp_path):
    config, text = compose([*SMALL, *ASYNC, f"run.dir={tmp_path / 'run'}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.run.StopSignal", _stops_after_an_update(tmp_path / "run"))
        summary = run(config, text)
    assert 0 < summary["updates"] < 3
    report = again(tmp_path / "run", tmp_path)
    assert report["repeated"] == summary["weights_digest"]
    assert report["complete"]


def _stops_after_an_update(folder):
    from actors.run import StopSignal

    class Stop(StopSignal):
        asked = property(lambda self: (folder / "metrics.jsonl").exists()
                         and '"update": 1,' in (folder / "metrics.jsonl").read_text(), lambda self, value: None)

    return Stop


def test_what_cannot_be_repeated_is_refused(recorded, tmp_path, config):
    from engine.config.run import Only

    with pytest.raises(ConfigError, match=r"train\.only"):
        in_one_process(changed(config, {"train.only": Only.learn, "train.rollouts": "x"}), tmp_path)
    with pytest.raises(RunFolderError, match=r"arrivals\.msgpack is missing"):
        read_arrivals(tmp_path / "arrivals.msgpack")
    (tmp_path / "arrivals.msgpack").write_bytes(b"\xc1")
    with pytest.raises((RecordError, ValueError)):
        read_arrivals(tmp_path / "arrivals.msgpack")
    several = changed(config, {"cluster.kind": ClusterKind.ray})
    with pytest.raises(ConfigError, match=r"learning\.num_learners=2: several learners add up in another order"):
        in_one_process(changed(several, {"learning.num_learners": 2}), tmp_path)
    moved = in_one_process(saved(recorded[0]), tmp_path / "again")
    assert moved.cluster.kind is ClusterKind.serial
    assert moved.run.dir == str(tmp_path / "again")

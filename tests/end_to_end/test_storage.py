"""Disks that are full or refuse, and checkpoints that are damaged: named, or gone around."""

import json
import resource
import subprocess
import sys

import pytest

from actors import training
from engine.errors import CheckpointError
from tests.end_to_end.harness import LEARNS, ROOT, train
from tools.audit import audit

CHECKPOINTED = ("learning.checkpoint_every=1",)


def flip(path) -> None:
    """Change one byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def stopped_after(folder, monkeypatch, updates: int):
    """A run that was ended between two updates, as a crash of the machine would."""
    before = training.reach

    def reach(point):
        before(point)
        if point == "driver.updated":
            reach.count += 1
            if reach.count == updates:
                raise KeyboardInterrupt

    reach.count = 0
    monkeypatch.setattr(training, "reach", reach)
    with pytest.raises(KeyboardInterrupt):
        train(folder, *CHECKPOINTED)
    monkeypatch.undo()


def test_a_damaged_checkpoint_is_passed_over(tmp_path, monkeypatch, undisturbed):
    folder = tmp_path / "run"
    stopped_after(folder, monkeypatch, 2)
    newest = folder / "checkpoints" / "update-000002"
    flip(newest / "learner" / "part-00000-of-00001.safetensors")
    summary = train(folder, *CHECKPOINTED, "run.exists=resume")
    assert summary["weights_digest"] == undisturbed["weights_digest"]
    assert audit(folder)["trained"] == 48
    assert (folder / "checkpoints" / "update-000002-2").exists(), "written again, beside the damaged one"


def test_without_any_whole_checkpoint_nothing_is_trained(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    stopped_after(folder, monkeypatch, 1)
    flip(folder / "checkpoints" / "update-000001" / "driver.msgpack")
    with pytest.raises(CheckpointError, match=r"driver\.msgpack do not match its digest"):
        train(folder, *CHECKPOINTED, "run.exists=resume")


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(tmp_path, monkeypatch, undisturbed):
    folder = tmp_path / "run"
    stopped_after(folder, monkeypatch, 1)
    (folder / "checkpoints" / "update-000001").rename(folder / "checkpoints" / ".tmp-update-000001-1")
    summary = train(folder, *CHECKPOINTED, "run.exists=resume")
    assert summary["weights_digest"] == undisturbed["weights_digest"]
    assert summary["trained_tokens"] == undisturbed["trained_tokens"]
    audit(folder)


def test_a_complete_run_is_not_trained_again(tmp_path):
    first = train(tmp_path / "run")
    again = train(tmp_path / "run", "run.exists=resume")
    assert again == json.loads(json.dumps(first))


def test_a_run_whose_time_is_up_is_complete(tmp_path):
    timed = ("learning.updates=500", "learning.max_seconds=0.05")
    first = train(tmp_path / "run", *timed)
    assert 1 <= first["updates"] < 500
    assert first["accuracy_after"] is not None, "the last version is evaluated"
    assert first["ledger"]["closes"]
    assert train(tmp_path / "run", *timed, "run.exists=resume") == json.loads(json.dumps(first))


def test_a_full_disk_is_named(tmp_path):
    """A limit on file size stands for the disk: it hits the largest file, which is the checkpoint's."""
    folder = tmp_path / "run"
    train(tmp_path / "first")  # so that the first weights lie in the cache
    limit = 250_000

    ended = subprocess.run(
        [sys.executable, "-m", "tools.train", *LEARNS, *CHECKPOINTED, f"run.dir={folder}"], cwd=ROOT,
        capture_output=True, text=True, timeout=300, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert ended.returncode == 2, ended.stderr
    assert "checkpoint" in ended.stderr
    assert "free the disk" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list((folder / "checkpoints").iterdir())

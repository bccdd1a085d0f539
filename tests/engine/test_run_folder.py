import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from engine import run_folder
from engine.config.run import Exists, RunSection
from engine.errors import RunFolderError
from engine.run_folder import FileLock, RunFolder, free_bytes, write_atomically

HOLDER = """
import sys
from pathlib import Path
from engine.run_folder import FileLock

lock = FileLock.acquire(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def open_folder(path, exists=Exists.refuse, **options):
    return RunFolder.open(RunSection(dir=str(path), exists=exists, **options))


def finished_run(path):
    folder = open_folder(path)
    folder.write_config("seed: 1\n")
    (folder.checkpoints / "update-1").mkdir()
    folder.close()
    return folder.run_id


def test_a_fresh_folder_has_its_places(tmp_path):
    with_parents = tmp_path / "a" / "run"
    folder = open_folder(with_parents)
    assert not folder.resumed
    assert folder.checkpoints.is_dir()
    assert folder.model.is_dir()
    assert folder.rollouts.is_dir()
    files = (folder.config_file, folder.metrics_file, folder.ledger_file, folder.arrivals_file)
    assert [file.name for file in files] == [
        "config.yaml", "metrics.jsonl", "ledger.msgpack", "arrivals.msgpack",
    ]  # fmt: skip
    assert folder.samples_file.parent == folder.summary_file.parent == with_parents
    folder.close()


def test_an_existing_run_is_refused_by_default(tmp_path):
    finished_run(tmp_path)
    with pytest.raises(RunFolderError, match=r"run\.exists=resume, run\.exists=overwrite"):
        open_folder(tmp_path)


def test_resume_keeps_everything_and_the_run_id(tmp_path):
    run_id = finished_run(tmp_path)
    folder = open_folder(tmp_path, Exists.resume)
    assert folder.resumed
    assert folder.run_id == run_id
    assert (folder.checkpoints / "update-1").is_dir()
    assert folder.config_file.read_text() == "seed: 1\n"
    folder.close()


@pytest.mark.parametrize("exists", list(Exists))
def test_a_run_that_died_before_its_first_line_starts_fresh(tmp_path, exists):
    for _ in range(2):
        folder = open_folder(tmp_path / "new", exists)
        assert not folder.resumed
        folder.close()


def test_overwrite_empties_a_run_folder_and_draws_another_id(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("")
    run = tmp_path / "run"
    run_id = finished_run(run)
    (run / "link").symlink_to(outside)
    folder = open_folder(run, Exists.overwrite)
    assert not folder.resumed
    assert folder.run_id != run_id
    assert not folder.config_file.exists()
    assert list(folder.checkpoints.iterdir()) == []
    assert (outside / "precious").exists()
    folder.close()


@pytest.mark.parametrize("exists", list(Exists))
def test_a_folder_that_is_no_run_folder_is_left_alone(tmp_path, exists):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"not a run folder|not empty"):
        open_folder(tmp_path, exists)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "config.yaml").touch()
    if exists is not Exists.refuse:
        open_folder(tmp_path, exists).close()


def test_the_marker_goes_last_so_that_an_interrupted_overwrite_can_be_repeated(tmp_path, monkeypatch):
    finished_run(tmp_path)

    def refuse(path):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.shutil, "rmtree", refuse)
        with pytest.raises(RunFolderError, match="Input/output"):
            open_folder(tmp_path, Exists.overwrite)
    assert (tmp_path / "config.yaml").exists()
    open_folder(tmp_path, Exists.overwrite).close()


def test_two_runs_cannot_share_one_folder(tmp_path):
    folder = open_folder(tmp_path)
    for exists in Exists:
        with pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"):
            open_folder(tmp_path, exists)
    folder.close()
    folder.close()
    open_folder(tmp_path).close()


def test_a_lock_dies_with_its_process(tmp_path):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert FileLock.acquire(path) is None
        assert FileLock.owner(path) == str(holder.pid)
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=60)
    lock = FileLock.acquire(path)
    assert lock is not None
    assert FileLock.owner(path) == str(os.getpid())
    lock.release(remove=True)
    lock.release()
    assert not path.exists()
    assert FileLock.owner(path) == "unknown"


def test_a_forked_worker_does_not_keep_the_lock(tmp_path):
    lock = FileLock.acquire(tmp_path / "lock")
    assert lock is not None
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    worker = fork.Process(target=lambda: (there.send("alive"), there.recv()), daemon=True)
    worker.start()
    assert here.poll(30)
    assert FileLock.acquire(tmp_path / "lock") is None
    lock.release()
    again = FileLock.acquire(tmp_path / "lock")
    assert again is not None
    assert worker.is_alive()
    here.send("go")
    worker.join(30)
    again.release()


def test_a_lock_on_an_unlinked_file_does_not_count(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    flock, stale = run_folder.fcntl.flock, []

    def unlink_once(fd, operation):
        flock(fd, operation)
        if not stale:
            stale.append(fd)
            path.unlink()

    monkeypatch.setattr(run_folder.fcntl, "flock", unlink_once)
    lock = FileLock.acquire(path)
    assert lock is not None
    assert path.exists()
    assert FileLock.acquire(path) is None
    lock.release()


def test_an_unwritable_place_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"run\.dir=.*cannot be written .*choose a folder"):
        open_folder(tmp_path / "file" / "run")


def test_samples_rotate_and_take_bounded_room(tmp_path):
    folder = open_folder(tmp_path, max_sample_mib=1)
    for number in range(5):
        folder.append_samples([{"number": number, "text": "x" * 600_000}])
    folder.close()
    lines = [json.loads(line) for line in folder.samples_file.read_text().splitlines()]
    older = [json.loads(line) for line in (tmp_path / "samples.1.jsonl").read_text().splitlines()]
    assert [row["number"] for row in older + lines] == [3, 4]
    assert sorted(path.name for path in tmp_path.glob("samples*")) == ["samples.1.jsonl", "samples.jsonl"]


def test_samples_append_and_a_torn_line_is_cut_on_resume(tmp_path):
    folder = open_folder(tmp_path)
    folder.write_config("")
    folder.append_samples([{"a": 1}, {"a": "\u00e9"}])
    with folder.samples_file.open("a") as file:
        file.write('{"a": 3')
    folder.close()
    folder = open_folder(tmp_path, Exists.resume)
    folder.append_samples([{"a": 4}])
    folder.close()
    rows = [json.loads(line) for line in folder.samples_file.read_text().splitlines()]
    assert [row["a"] for row in rows] == [1, "\u00e9", 4]


def test_config_and_summary_are_replaced_whole(tmp_path, monkeypatch):
    folder = open_folder(tmp_path)
    folder.write_config("seed: 1\n")
    folder.write_summary({"accuracy": 0.5})
    assert json.loads(folder.summary_file.read_text()) == {"accuracy": 0.5}

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"is full .* free the disk and resume"):
        folder.write_summary({"accuracy": 0.75})
    with pytest.raises(RunFolderError, match="is full"):
        folder.write_config("seed: 2\n")
    folder.close()
    assert json.loads(folder.summary_file.read_text()) == {"accuracy": 0.5}
    assert folder.config_file.read_text() == "seed: 1\n"
    assert not list(tmp_path.glob(".*.tmp"))


def test_an_atomic_write_leaves_old_bytes_or_new(tmp_path):
    file = tmp_path / "file"
    write_atomically(file, b"old")
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_too_little_room_is_refused_before_the_start(tmp_path):
    folder = open_folder(tmp_path)
    folder.require_room(1)
    with pytest.raises(RunFolderError, match=r"bytes free, \d+ are needed"):
        folder.require_room(free_bytes(tmp_path) * 2 + 1)
    folder.close()


def test_run_ids_differ_between_folders_and_between_fresh_starts(tmp_path):
    first, second = open_folder(tmp_path / "a"), open_folder(tmp_path / "b")
    assert first.run_id != second.run_id
    assert first.run_id.split("-")[0] != second.run_id.split("-")[0]
    first.close()
    second.close()

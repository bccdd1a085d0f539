import errno
import json
import logging
import multiprocessing
import os
import random
import resource
import select
import shutil
import signal
from pathlib import Path

import pytest
import torch

from engine.errors import CheckpointError
from engine.learn import checkpoint
from engine.learn.checkpoint import newest_checkpoint, prune, read_checkpoint, write_checkpoint
from engine.learn.parts import Parts, write_part

FORK = multiprocessing.get_context("fork")


def write_model(path):
    path.mkdir()
    (path / "weights.safetensors").write_bytes(b"w" * 1000)


def write_whole(root, name="update-1", payload=b"state", **options):
    parts = {"state.msgpack": payload, "model": write_model}
    return write_checkpoint(root / name, parts, {"update": 1, "lineage": 0}, **options)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip_bit(file, offset, bit=0):
    data = bytearray(file.read_bytes())
    data[offset] ^= 1 << bit
    file.write_bytes(data)


def test_what_was_written_is_read(tmp_path):
    path = write_whole(tmp_path / "checkpoints")
    assert path == tmp_path / "checkpoints" / "update-1"
    found = read_checkpoint(newest_checkpoint(tmp_path / "checkpoints"))
    assert found.read("state.msgpack") == b"state"
    assert (found.path("model") / "weights.safetensors").read_bytes() == b"w" * 1000
    assert found.meta == {"update": 1, "lineage": 0}
    with pytest.raises(CheckpointError, match="no part 'optimiser'"):
        found.read("optimiser")
    with pytest.raises(CheckpointError, match="model"):
        found.read("model")


def test_tensors_pass_through_a_part(tmp_path):
    tensors = {"a": torch.randn(5), "b": torch.arange(3)}
    rows = {name: (0, len(tensor), len(tensor)) for name, tensor in tensors.items()}
    path = write_checkpoint(tmp_path / "c", {"w": lambda file: write_part(file, 0, 1, tensors, rows, {})}, {})
    with Parts(read_checkpoint(path).path("w")) as loaded:
        assert all(torch.equal(loaded.read(name, rows[name]), tensor) for name, tensor in tensors.items())


def test_newest_is_the_last_written_whatever_its_name(tmp_path):
    write_whole(tmp_path, "update-12")
    write_whole(tmp_path, "update-2")
    assert newest_checkpoint(tmp_path).name == "update-2"


def test_nothing_that_stands_is_written_over(tmp_path):
    first = write_whole(tmp_path, payload=b"first")
    second = write_whole(tmp_path, payload=b"second")
    assert (first.name, second.name) == ("update-1", "update-1-2")
    assert read_checkpoint(first).read("state.msgpack") == b"first"
    assert newest_checkpoint(tmp_path) == second


def test_every_flipped_byte_is_found_by_name(tmp_path, caplog):
    older = write_whole(tmp_path, "update-1")
    newer = write_whole(tmp_path, "update-2")
    for file in files_of(newer):
        data = file.read_bytes()
        for offset in sorted({0, len(data) // 3, len(data) // 2, len(data) - 1}):
            flip_bit(file, offset)
            with pytest.raises(CheckpointError, match=file.name):
                read_checkpoint(newer)
            with caplog.at_level(logging.WARNING):
                caplog.clear()
                assert newest_checkpoint(tmp_path) == older
            assert str(newer) in caplog.text
            file.write_bytes(data)
    assert newest_checkpoint(tmp_path) == newer


def test_no_byte_of_the_manifest_can_change_unseen(tmp_path):
    manifest = write_whole(tmp_path) / "manifest.json"
    data = manifest.read_bytes()
    for offset in range(len(data)):
        flip_bit(manifest, offset, bit=offset % 8)
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            read_checkpoint(manifest.parent)
        manifest.write_bytes(data)
    read_checkpoint(manifest.parent)


def test_truncated_missing_and_manifestless_checkpoints_are_refused(tmp_path):
    path = write_whole(tmp_path, payload=b"0123456789")
    os.truncate(path / "state.msgpack", 4)
    with pytest.raises(CheckpointError, match=r"state\.msgpack has 4 bytes, expected 10"):
        read_checkpoint(path)
    (path / "state.msgpack").unlink()
    with pytest.raises(CheckpointError, match=r"state\.msgpack is missing"):
        read_checkpoint(path)
    (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no manifest\.json"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"no whole checkpoint in .*update-1 is damaged"):
        newest_checkpoint(tmp_path)


def test_another_format_is_refused_with_both_numbers(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT_VERSION", 99)
        path = write_whole(tmp_path)
    with pytest.raises(CheckpointError, match=r"format 99 .* reads 2"):
        read_checkpoint(path)


def test_an_empty_or_missing_root_holds_none(tmp_path):
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="it holds none"):
            newest_checkpoint(root)


def test_stages_are_told_in_order(tmp_path):
    seen = []

    def look(stage):
        temporary = [path for path in tmp_path.iterdir() if path.name.startswith(".tmp-")]
        seen.append((stage, len(temporary), (tmp_path / "update-1").exists()))

    write_whole(tmp_path, on_stage=look)
    assert seen == [("written", 1, False), ("renamed", 0, True)]


def test_files_folders_and_parent_are_forced_to_disk(tmp_path, monkeypatch):
    forced = []
    monkeypatch.setattr(checkpoint, "fsync_path", lambda path: forced.append(path.name))
    write_whole(tmp_path)
    temporary = f".tmp-update-1-{os.getpid()}"
    everything = {
        "state.msgpack",
        "weights.safetensors",
        "manifest.json",
        "model",
        temporary,
        tmp_path.name,
    }
    assert set(forced) == everything
    assert forced[-1] == tmp_path.name


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    older = write_whole(tmp_path)

    def full(path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=r"no room for checkpoint .* free the disk"):
        write_checkpoint(tmp_path / "update-2", {"model": full}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["update-1"]
    assert newest_checkpoint(tmp_path) == older


def _write_beyond_the_limit(root, results):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    tensors, rows = {"a": torch.zeros(10_000)}, {"a": (0, 10_000, 10_000)}
    for part in (b"x" * 10_000, lambda file: write_part(file, 0, 1, tensors, rows, {})):
        try:
            write_checkpoint(root / "big", {"part": part}, {})
        except CheckpointError as error:
            results.send(str(error))


def test_a_real_limit_of_the_kernel_is_an_error_for_bytes_and_tensors(tmp_path):
    parent, child = FORK.Pipe()
    process = FORK.Process(target=_write_beyond_the_limit, args=(tmp_path, child))
    process.start()
    messages = [parent.recv() for _ in range(2) if parent.poll(30)]
    process.join(30)
    assert "no room for checkpoint" in messages[0]
    assert "free the disk" in messages[1]
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_part_leaves_nothing(tmp_path):
    def broken(path):
        path.mkdir()
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        write_checkpoint(tmp_path / "update-1", {"model": broken}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["manifest.json", "a/b", ".hidden", "..", ""])
def test_part_names_are_plain(tmp_path, name):
    with pytest.raises(AssertionError, match="plain file name"):
        write_checkpoint(tmp_path / "update-1", {name: b""}, {})
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_dead_writers_go_and_of_living_ones_stay(tmp_path):
    process = FORK.Process(target=int)
    process.start()
    process.join(30)
    dead, living = tmp_path / f".tmp-u-{process.pid}", tmp_path / f".tmp-u-{os.getppid()}"
    dead.mkdir()
    living.mkdir()
    write_whole(tmp_path)
    assert not dead.exists()
    assert living.exists()


def test_prune_keeps_the_newest_and_leaves_damaged_ones(tmp_path):
    for update in range(1, 6):
        write_whole(tmp_path, f"update-{update}")
    (tmp_path / "update-4" / "manifest.json").unlink()
    os.truncate(tmp_path / "update-1" / "state.msgpack", 1)
    assert [path.name for path in prune(tmp_path, 1)] == ["update-2", "update-3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["update-1", "update-4", "update-5"]
    assert prune(tmp_path, 3) == []
    with pytest.raises(AssertionError, match="newest must stay"):
        prune(tmp_path, 0)


def test_a_kill_amid_pruning_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    write_whole(tmp_path, "update-1")
    write_whole(tmp_path, "update-2")

    def killed(path, ignore_errors):
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, 1)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f".tmp-update-1-{os.getpid()}", "update-2"]


def _write_for_ever(root: Path, started: int) -> None:
    payload = os.urandom(200_000)
    for number in range(10_000):
        parts = {"state": payload, "weights": lambda path: path.write_bytes(payload), "model": write_model}
        write_checkpoint(root / f"update-{os.getpid()}-{number}", parts, {"number": number})
        prune(root, 2)
        os.write(started, b"x")


def test_thirty_kills_at_random_moments_never_cost_a_checkpoint(tmp_path):
    moments = random.Random(0)
    write_whole(tmp_path, "first")
    amid = 0
    for _ in range(30):
        read_end, write_end = os.pipe()
        process = FORK.Process(target=_write_for_ever, args=(tmp_path, write_end))
        process.start()
        assert process.pid is not None
        # Some kills come before the first checkpoint of this life, some after: the wait is the lottery.
        select.select([read_end], [], [], moments.uniform(0.001, 0.04))
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
        os.close(read_end)
        os.close(write_end)
        amid += any(path.name.startswith(".tmp-") for path in tmp_path.iterdir())
        for folder in tmp_path.iterdir():
            if not folder.name.startswith(".tmp-"):
                read_checkpoint(folder)
        read_checkpoint(newest_checkpoint(tmp_path))
        assert not any(path.name.startswith(".tmp-") for path in tmp_path.iterdir())
    assert amid, "no kill met a write in progress: the test tests nothing"


def test_a_kill_at_either_stage_leaves_the_old_or_the_new(tmp_path):
    def die_at(stage):
        write_whole(tmp_path, "new", on_stage=lambda now: os._exit(9) if now == stage else None)

    write_whole(tmp_path, "old")
    for stage, newest in (("written", "old"), ("renamed", "new")):
        process = FORK.Process(target=die_at, args=(stage,))
        process.start()
        process.join(30)
        assert process.exitcode == 9
        assert newest_checkpoint(tmp_path).name == newest


def test_the_manifest_lists_every_file(tmp_path):
    path = write_whole(tmp_path)
    body = json.loads((path / "manifest.json").read_text())["body"]
    assert sorted(body["files"]) == ["model/weights.safetensors", "state.msgpack"]

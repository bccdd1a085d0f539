import os
import signal
import subprocess
import sys

import pytest
import torch

from engine.config.cluster import WeightsConfig
from engine.errors import WeightChannelError
from engine.records.version import PolicyVersion
from engine.weights.channel_folder import clean_leftovers, held_for_reading
from engine.weights.shared_memory import SharedMemorySender

V1 = PolicyVersion(0, 1)

DEAD_WRITER = """
import os, signal, sys, torch
from engine.config.cluster import WeightsConfig
from engine.records.version import PolicyVersion
from engine.weights.shared_memory import SharedMemorySender

sender = SharedMemorySender(WeightsConfig(folder=sys.argv[1]), "dead")
sender.publish({"a": torch.ones(3)}, PolicyVersion(0, 1))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def config(tmp_path):
    return WeightsConfig(folder=str(tmp_path), bucket_mib=1)


@pytest.fixture
def sender(config):
    sender = SharedMemorySender(config, "run")
    yield sender
    sender.close()


def some_weights():
    return {"weight": torch.ones(300)}


def test_one_living_sender_per_run(sender, config):
    with pytest.raises(WeightChannelError, match=f"already sends weights from process {os.getpid()}"):
        SharedMemorySender(config, "run")


def test_an_unusable_folder_is_named(tmp_path):
    missing = tmp_path / "file"
    missing.write_text("")
    with pytest.raises(WeightChannelError, match=r"weights\.folder="):
        SharedMemorySender(WeightsConfig(folder=str(missing)), "run")


def test_leftovers_of_the_dead_go_and_the_living_stay(config, sender, tmp_path):
    sender.publish(some_weights(), V1)
    dead = subprocess.run([sys.executable, "-c", DEAD_WRITER, str(tmp_path)], timeout=60, check=False)
    assert dead.returncode == -signal.SIGKILL
    assert (tmp_path / "perilune-dead" / "v0.1.weights").exists()
    (tmp_path / "perilune-nolock").mkdir()
    (tmp_path / "other").mkdir()
    assert clean_leftovers(tmp_path) == ["perilune-dead", "perilune-nolock"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "other",
        "perilune-run",
        "perilune-run.lock",
    ]
    assert (tmp_path / "perilune-run" / "v0.1.weights").exists()


def test_a_run_that_comes_back_takes_over_its_own_leftovers(config, tmp_path):
    (tmp_path / "perilune-run").mkdir()
    (tmp_path / "perilune-run" / ".v0.1.weights.tmp").write_bytes(b"torn")
    sender = SharedMemorySender(config, "run")
    assert list((tmp_path / "perilune-run").iterdir()) == []
    sender.close()


def test_a_file_that_is_held_is_the_one_that_stands(tmp_path):
    file = tmp_path / "v0.1"
    file.write_bytes(b"one")
    with held_for_reading(file, V1) as fd:
        assert os.read(fd, 3) == b"one"
    file.unlink()
    with pytest.raises(WeightChannelError, match=r"version 0\.1 is gone"), held_for_reading(file, V1):
        pass


def test_an_error_while_a_file_is_held_is_not_taken_for_its_loss(tmp_path):
    file = tmp_path / "v0.1"
    file.write_bytes(b"one")
    with pytest.raises(BlockingIOError, match="of the reader"), held_for_reading(file, V1):
        raise BlockingIOError("of the reader")

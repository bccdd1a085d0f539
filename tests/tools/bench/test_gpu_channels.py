from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.cluster import WeightsConfig
from engine.errors import WeightChannelError
from engine.records.codec import encode
from engine.records.version import PolicyVersion
from engine.weights.channel import open_receiver, open_sender
from tools.bench import gpu_channels

CUDA = torch.cuda.is_available()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsConfig:
    config = WeightsConfig(folder=str(tmp_path))
    monkeypatch.setattr(gpu_channels, "config_of", lambda channel, folder: config)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return config


def test_the_child_answers_for_each_manifest(
    config: WeightsConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sender = open_sender(config, "check")
    manifests = [sender.publish({"a": torch.full((5,), float(u))}, PolicyVersion(0, u)) for u in (1, 2, 3)]
    lines = "".join(encode(manifest).hex() + "\n" for manifest in manifests)
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    gpu_channels.receive("shared_memory", config.folder, 0)
    gone, *whole = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "gone" in gone["error"]
    assert whole == [{"digest": manifests[u - 1].digest, "first": float(u)} for u in (2, 3)]
    sender.close()


class Answers:
    """A child of which one thing is wrong."""

    def __init__(self, receiver: Any, **wrong: Any) -> None:
        self.receiver, self.wrong = receiver, wrong

    def receive(self, manifest: Any) -> dict[str, Any]:
        staged = self.receiver.receive(manifest)
        return {"digest": staged.digest, "first": float(staged.tensors["a"][0])} | self.wrong


def test_an_update_counts_only_if_the_right_weights_arrived(
    config: WeightsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu_channels, "weights", lambda updates: {"a": torch.full((8,), float(updates))})
    sender, receiver = open_sender(config, "check"), open_receiver(config, "check")
    published, taken, num_bytes = gpu_channels.update(sender, Answers(receiver), 1)
    assert 0 < published < taken
    assert num_bytes == 64
    for updates, wrong in ((2, {"first": 7.0}), (3, {"digest": "0"})):
        with pytest.raises(WeightChannelError, match="the receiver has"):
            gpu_channels.update(sender, Answers(receiver, **wrong), updates)
    receiver.close()
    sender.close()


@pytest.mark.skipif(not CUDA, reason="no GPU")
@pytest.mark.parametrize("channel", ["cuda_ipc", pytest.param("nccl", marks=pytest.mark.skipif(
    importlib.util.find_spec("cupy") is None, reason="no cupy"))])
def test_a_channel_on_gpus_carries_updates_between_processes(channel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_channels, "NUMBERS", 1_000_000)
    for name, value in gpu_channels.ONE_GPU.items():
        monkeypatch.setenv(name, value)
    found = gpu_channels.measure(channel)
    assert found["successor"]

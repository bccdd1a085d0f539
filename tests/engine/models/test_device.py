"""Which device is meant, and who says so when it is not there."""

from __future__ import annotations

import pytest
import torch

from engine.config.cluster import Device
from engine.errors import ConfigError
from engine.models.device import give_back, torch_device


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device(Device.cpu) == torch_device(Device.auto) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"cluster.device='cuda': torch sees no GPU here: choose cpu or auto"):
        torch_device(Device.cuda)


def test_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert torch_device(Device.cpu) == torch.device("cpu")
    assert torch_device(Device.auto) == torch_device(Device.cuda) == torch.device("cuda", 0)


def test_only_a_gpu_gets_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    give_back(torch.device("cpu"))
    assert emptied == []
    give_back(torch.device("cuda", 0))
    assert emptied == [True]

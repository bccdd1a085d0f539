from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.launch import compose
from engine.config.cluster import ClusterKind, Device
from engine.errors import ModelError
from tools.bench import gpu_loop

SERIAL = [name for name, overrides in gpu_loop.RUNS.items() if "cluster=serial" in overrides]
SUMMARY = {"updates": 3, "ledger": {"closes": True}, "else": 1}


@pytest.mark.parametrize("name", SERIAL)
def test_a_run_of_one_process_is_composed_for_the_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    seen: list[Any] = []

    def run(config: Any, text: str) -> dict[str, Any]:
        seen.append(config)
        return SUMMARY

    monkeypatch.setattr(gpu_loop, "run", run)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7)
    found = gpu_loop.one(gpu_loop.RUNS[name], "cuda", tmp_path / name)
    assert (found["updates"], found["ledger_closes"], found["peak_bytes"], "else" in found) == (3, True, 7, False)
    assert seen[0].cluster.device is Device.cuda


@pytest.mark.parametrize("name", set(gpu_loop.RUNS) - set(SERIAL))
def test_a_run_over_ray_is_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    def launch(overrides: list[str]) -> None:
        config, _ = compose(overrides)
        assert (config.cluster.kind, config.cluster.device) == (ClusterKind.ray, Device.cuda)
        Path(config.run.dir).mkdir()
        (Path(config.run.dir) / "summary.json").write_text(json.dumps(SUMMARY))

    monkeypatch.setattr(gpu_loop, "_launch", launch)
    found = gpu_loop.one(gpu_loop.RUNS[name], "cuda", tmp_path / name)
    assert (found["updates"], found["ledger_closes"], "else" in found) == (3, True, False)


def test_a_run_over_ray_that_fails_says_its_last_words(tmp_path: Path) -> None:
    found = gpu_loop.one((*gpu_loop.RUNS["ray_nccl"], "learning.updates=minus"), "cpu", tmp_path)
    assert "learning.updates" in found["error"]


def test_a_run_that_is_refused_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(config: Any, text: str) -> None:
        raise ModelError("no package")

    monkeypatch.setattr(gpu_loop, "run", run)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    assert gpu_loop.one(gpu_loop.RUNS["smoke"], "cpu", tmp_path) == {"error": "ModelError: no package"}

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.config.cluster import Device
from engine.errors import ModelError
from tools.bench import gpu_loop


@pytest.mark.parametrize("name", gpu_loop.RUNS)
def test_every_run_composes_on_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    seen: list[Any] = []

    def run(config: Any, text: str) -> dict[str, Any]:
        seen.append(config)
        return {"updates": 3, "ledger": {"closes": True}, "else": 1}

    monkeypatch.setattr(gpu_loop, "run", run)
    found = gpu_loop.one(gpu_loop.RUNS[name], "cuda", tmp_path / name)
    assert (found["updates"], found["ledger_closes"], "else" in found) == (3, True, False)
    assert seen[0].cluster.device is Device.cuda


def test_a_run_that_is_refused_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(config: Any, text: str) -> None:
        raise ModelError("no package")

    monkeypatch.setattr(gpu_loop, "run", run)
    assert gpu_loop.one(gpu_loop.RUNS["smoke"], "cpu", tmp_path) == {"error": "ModelError: no package"}

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.launch import compose
from engine.config.cluster import ClusterKind, Device
from tools.bench import gpu, gpu_loop

SUMMARY: dict[str, Any] = {"updates": 3, "ledger": {"closes": True}, "else": 1}


@pytest.fixture
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def ends_with(summary: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every run is composed, and leaves this summary; the configurations."""
    seen: list[Any] = []

    def launch(overrides: list[str]) -> None:
        config, _ = compose(overrides)
        seen.append(config)
        Path(config.run.dir).mkdir()
        (Path(config.run.dir) / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr(gpu_loop, "_launch", launch)
    return seen


@pytest.mark.parametrize("name", sorted(gpu_loop.RUNS))
def test_every_run_is_composed_for_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    seen = ends_with(SUMMARY, monkeypatch)
    found = gpu_loop.one(gpu_loop.RUNS[name], "cuda", tmp_path / name)
    assert (found["updates"], found["ledger_closes"]) == (3, True)
    assert found.keys().isdisjoint(("else", "error"))
    kind = ClusterKind.serial if name.startswith("smoke") else ClusterKind.ray
    assert (seen[0].cluster.kind, seen[0].cluster.device) == (kind, Device.cuda)


def test_a_run_whose_ledger_does_not_close_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ends_with(SUMMARY | {"ledger": {"closes": False, "issued": 9}}, monkeypatch)
    found = gpu_loop.one(gpu_loop.RUNS["smoke"], "cuda", tmp_path / "smoke")
    assert (found["ledger_closes"], found["updates"]) == (False, 3)
    assert "'issued': 9" in found["error"]


@pytest.mark.parametrize("name", ["smoke", "ray_nccl"])
def test_a_run_that_fails_says_its_last_words(tmp_path: Path, name: str) -> None:
    found = gpu_loop.one((*gpu_loop.RUNS[name], "learning.updates=minus"), "cpu", tmp_path)
    assert "learning.updates" in found["error"]


def test_a_run_may_end_in_any_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = "import os; print('illegal memory access', flush=True); os.abort()"
    monkeypatch.setattr(gpu_loop, "TRAIN", (sys.executable, "-c", program))
    assert "illegal memory access" in gpu_loop.one(gpu_loop.RUNS["smoke"], "cuda", tmp_path)["error"]


def test_a_run_without_a_summary_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_loop, "TRAIN", (sys.executable, "-c", ""))
    assert gpu_loop.one(gpu_loop.RUNS["smoke"], "cuda", tmp_path) == {"error": "it left no summary"}


def test_a_late_run_is_ended_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_loop, "TRAIN", (sys.executable, "-c", "import signal; signal.pause()"))
    monkeypatch.setattr(gpu_loop, "DEADLINE_S", 0.5)
    assert "not ended after" in gpu_loop.one(gpu_loop.RUNS["smoke"], "cuda", tmp_path)["error"]


def test_who_kills_the_group_kills_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_loop, "TRAIN", (sys.executable, "-c", "import os; print(os.getpgrp()); os.abort()"))
    assert gpu_loop.one(gpu_loop.RUNS["ray_nccl"], "cuda", tmp_path)["error"] == f"{os.getpgrp()}\n"


@pytest.mark.usefixtures("_signals")
def test_the_others_have_their_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def one(overrides: tuple[str, ...], device: str, folder: Path) -> dict[str, Any]:
        return {"error": "broken"} if folder.name == "smoke" else {"seconds": 1.0}

    monkeypatch.setattr(gpu_loop, "one", one)
    monkeypatch.setattr(gpu, "card", dict)
    monkeypatch.setattr(sys, "argv", ["gpu_loop", str(tmp_path / "loop.json")])
    with pytest.raises(SystemExit, match=r": smoke$"):
        gpu_loop.main()
    assert list(json.loads((tmp_path / "loop.json").read_text())) == list(gpu_loop.USUAL)


@pytest.mark.usefixtures("_signals")
def test_a_check_that_is_told_to_end_may_end_its_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_loop, "one", lambda *_: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(gpu, "card", dict)
    monkeypatch.setattr(sys, "argv", ["gpu_loop", str(tmp_path / "loop.json")])
    with pytest.raises(SystemExit) as ended:
        gpu_loop.main()
    assert ended.value.code == 128 + signal.SIGTERM

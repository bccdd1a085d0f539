"""Run folders as runs leave them: a matrix of two arms that was written, not made, and one that waits."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from engine.run_folder import FileLock
from tests.tools.run_folders import SMOKE, write_run
from tools.ablation.arms import AblationConfig, ArmConfig, TargetConfig
from tools.ablation.cells import Cell
from tools.ablation.matching import match_arms
from tools.ablation.matrix import cells_of

STATUS: dict[str, Any] = {
    "state": "running", "at": 1000.0, "began": 400.0, "pid": 77, "total_updates": 24, "updates": 7, "version": "0.7",
    "actors": {
        "generator-0#2": {"state": "advance", "since": 700.0, "silent_s": 300.0, "last_answer": "advance"},
        "judge#1": {"state": "idle", "since": 990.0, "silent_s": 10.0, "last_answer": "judge"},
        "learner": {"state": "idle", "since": 650.0, "silent_s": 350.0, "last_answer": "update"},
    },
    "waits": [{"actor": "generator-0#2", "method": "advance", "since": 688.0},
              {"actor": "replay", "method": "deliver", "since": 999.5}],
    "queues": {"ready_trajectories": 0, "flying_trajectories": 8, "outstanding_groups": 4, "training_groups": 0},
    "serving": {"generator-0#2": 5}, "tokens_per_second": 0.0, "generated_tokens": 4096, "restarts": 1,
    "oldest_outstanding_versions": 2, "rewards": [0.0, 0.25, 0.5, 1.0],
    "latest": {"schedule/staleness_mean_versions": 0.5, "rollout/length_mean_tokens": 12.0},
}


@pytest.fixture
def ablation(tmp_path: Path) -> Callable[..., AblationConfig]:
    """An ablation of ``sync`` and ``ahead``, changed as wished."""
    def make(**changes: Any) -> AblationConfig:
        ahead = ArmConfig("ahead", ["schedule=async", "schedule.max_staleness=2"], "sync", "overlap")
        values = {"name": "trial", "dir": str(tmp_path / "all"), "base": list(SMOKE), "seeds": [0, 1], "amount": 4,
                  "arms": [ArmConfig("sync"), ahead], "target": TargetConfig(value=0.5)}
        return AblationConfig(**{**values, **changes})

    return make


@pytest.fixture
def matrix(ablation: Callable[..., AblationConfig]) -> Callable[..., tuple[AblationConfig, list[Cell]]]:
    """The same with its runs: ``ahead`` is twice as fast and needs as many samples."""
    def make(cut: tuple[str, int] = ("", 0), **changes: Any) -> tuple[AblationConfig, list[Cell]]:
        config = ablation(**changes)
        cells = cells_of(config, match_arms(config))
        for cell in cells:
            speed = (2.0 if cell.arm.name == "ahead" else 1.0) * (1.0 + 0.01 * cell.seed)
            write_run(cell.folder, *cell.arm.overrides[1:-1], seed=cell.seed, speed=speed,
                      whole=(cell.arm.name, cell.seed) != cut)
        return config, cells

    return make


@pytest.fixture
def looked_at(tmp_path) -> Iterator[Callable[..., Path]]:
    """Write a status with changes; a live run holds the folder's lock."""
    locks = []

    def make(live: bool = True, **changes: Any) -> Path:
        (tmp_path / "status.json").write_text(json.dumps(STATUS | changes))
        if live:
            locks.append(FileLock.acquire(tmp_path / ".lock"))
        return tmp_path

    yield make
    for lock in locks:
        lock.release()


@pytest.fixture
def texts() -> Callable[[str], list[str]]:
    """Every text of a piece of markup, in order; parsing it fails where it is not well formed."""
    def read(markup: str) -> list[str]:
        root = ElementTree.fromstring(f"<all>{markup.replace('&nbsp;', ' ')}</all>")
        return [text.strip() for text in root.itertext() if text.strip()]

    return read

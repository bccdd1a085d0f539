"""A run folder as a run leaves it while it waits."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.run_folder import FileLock

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

"""A matrix of two arms whose runs were written, not made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tools.run_folders import SMOKE, write_run
from tools.ablation.arms import AblationConfig, ArmConfig, TargetConfig
from tools.ablation.cells import Cell
from tools.ablation.matching import match_arms
from tools.ablation.matrix import cells_of


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

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.config.model import AdapterConfig, ModelConfig, ModelSource, ScratchConfig, WarmupConfig


@pytest.mark.parametrize(("cls", "options", "key"), [
    *((ScratchConfig, {name: 0}, f"model.scratch.{name}")
      for name in ("layers", "width", "heads", "intermediate", "context_tokens")),
    (ScratchConfig, {"width": 12, "heads": 4}, "model.scratch.heads"),
    (ScratchConfig, {"initial_deviation": 0.0}, "model.scratch.initial_deviation"),
    (AdapterConfig, {"rank": -1}, "model.adapter.rank"),
    (WarmupConfig, {"steps": -1}, "model.warmup.steps"),
    (WarmupConfig, {"batch_size": 0}, "model.warmup.batch_size"),
    (WarmupConfig, {"learning_rate": -1.0}, "model.warmup.learning_rate"),
    *((WarmupConfig, {"hasty_fraction": share}, "model.warmup.hasty_fraction") for share in (-0.1, 1.1)),
    (ModelConfig, {"source": ModelSource.folder, "path": ""}, "model.path"),
], ids=str)
def test_what_cannot_work_is_refused(refused: Callable[..., None], cls: Any, options: dict[str, Any],
                                     key: str) -> None:
    refused(cls, options, key)


def test_limits_themselves_are_fine() -> None:
    assert ScratchConfig(layers=1, width=8, heads=4).alphabet == ""
    assert ModelConfig(source=ModelSource.packaged).warmup.steps == 0
    assert WarmupConfig(hasty_fraction=1.0).hasty_fraction == 1.0

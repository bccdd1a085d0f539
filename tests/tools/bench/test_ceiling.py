from __future__ import annotations

import pytest
import torch

from engine.ops import extension
from tools.bench.ceiling import ceiling_operations, ceiling_side, fraction


@pytest.mark.skipif(not extension.available(), reason="the extension is not built")
def test_every_level_and_thread_counts_its_operations() -> None:
    before = extension.level()
    try:
        for level in extension.LEVELS[: extension.LEVELS.index(torch.ops.perilune.best_cpu_level()) + 1]:
            extension.force_level(level)
            torch.set_num_threads(1)
            one = ceiling_operations(10)
            assert one > 0
            assert ceiling_operations(20) == 2 * one
            torch.set_num_threads(2)
            assert ceiling_operations(10) == 2 * one
    finally:
        extension.force_level(before)
    side = ceiling_side(10)
    assert side is not None
    assert side() > 0.0
    operations = ceiling_operations(10)
    assert fraction(operations / 2, 1.0, 1.0, 10) == pytest.approx(0.5)
    assert fraction(operations, 4.0, 1.0, 10) == pytest.approx(0.25)


def test_there_is_no_ceiling_without_the_compiled_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.bench.ceiling.available", lambda: False)
    assert ceiling_side() is None

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.config.cluster import WeightsConfig
from tools.bench import publish
from tools.bench.subject import Subject


def test_publishing_is_counted_in_copies_of_the_same_bytes(subject: Subject) -> None:
    found = publish.measure(subject, 2)
    whole, step, copy = (found[f"publish_{name}_seconds"]["median"] for name in ("publish", "step", "memcpy"))
    assert found["publish_memcpys"] == pytest.approx((whole - step) / copy)
    floats = sum(p.numel() for p in subject.network().parameters())
    assert 2 * floats <= found["publish_bytes"] < 2.1 * floats
    assert list(Path(WeightsConfig().folder).glob(f"perilune-bench-{os.getpid()}*")) == []

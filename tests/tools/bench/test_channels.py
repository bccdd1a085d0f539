from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.config.cluster import WeightsConfig
from tools.bench import channels
from tools.bench.subject import Subject


class Cluster:
    """Actors in this process."""

    def __init__(self, config: Any, run_id: str) -> None:
        self.room = config.object_store_mib

    def start(self, name: str, factory: Any, arguments: dict[str, int], threads: int) -> None:
        assert (name, factory, arguments) == ("reading", channels.Reading, {"threads": threads})

    def close(self) -> None:
        """Nothing is left."""


@contextmanager
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The third way through the store of this process."""
    local = channels.LocalStore
    with ExitStack() as stack:
        monkeypatch.setattr(channels, "RayCluster", Cluster)
        monkeypatch.setattr(channels, "RayStore", lambda deadline_s: local())
        reading = channels.ObjectStoreReceiver(channels.OBJECTS, local())
        monkeypatch.setattr(
            channels, "ask",
            lambda cluster, name, method, manifest, deadline_s: reading.receive(manifest).digest,
        )
        stack.callback(reading.close)
        yield


def test_each_way_is_counted_in_copies_of_the_same_bytes(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    with without_ray(monkeypatch):
        found = channels.measure(subject, 2)
    copy_s = found["channel_memcpy_seconds"]["median"]
    for name in ("shared_memory", "object_store", "object_store_over_ray"):
        seconds = found[f"channel_{name}_seconds"]["median"]
        assert found[f"channel_{name}_memcpys"] == pytest.approx(seconds / copy_s)
        assert found[f"channel_{name}_bytes_per_second"] == pytest.approx(found["channel_bytes"] / seconds)
    floats = sum(p.numel() for p in subject.network().parameters())
    assert 2 * floats <= found["channel_bytes"] < 2.1 * floats
    assert list(Path(WeightsConfig().folder).glob(f"perilune-bench-{os.getpid()}*")) == []

"""Live numbers of a run through Ray's own metrics: in its dashboard, and for Prometheus at its metrics port.

They come from what ``status.json`` says, at most once a second, and are gauges of the driver's process.
Prometheus knows them as ``ray_<name>``; ``docs/grafana.json`` is a dashboard over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "perilune_updates": ("committed updates", ()),
    "perilune_total_updates": ("updates at which the run is complete", ()),
    "perilune_generator_version": ("version that a generator serves, in committed updates", ("actor",)),
    "perilune_staleness_mean_versions": ("mean staleness of the loss-carrying tokens of the last update", ()),
    "perilune_staleness_max_versions": ("largest staleness of a token of the last update", ()),
    "perilune_oldest_outstanding_versions": ("versions since the oldest outstanding group began", ()),
    "perilune_tokens_per_second": ("tokens sampled per second by all generators together", ()),
    "perilune_generated_tokens": ("tokens sampled since the run began", ()),
    "perilune_reward_mean": ("mean total reward of the last update", ()),
    "perilune_queue_depth": ("trajectories or groups that wait in a queue", ("queue",)),
    "perilune_actor_silent_seconds": ("seconds since an actor that was asked something last answered", ("actor",)),
    "perilune_restarts": ("actors restarted since the run began", ()),
}
"""Name -> meaning and tags."""


def readings(status: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str], float]]:
    """What a status says in numbers: name, tags, value. Before there is a driver, about actors alone."""
    for name, actor in status["actors"].items():
        asked = actor["state"] != "idle"
        yield "perilune_actor_silent_seconds", {"actor": name}, status["at"] - actor["since"] if asked else 0.0
    if "version" not in status:
        return
    for key in ("updates", "total_updates", "oldest_outstanding_versions", "tokens_per_second", "generated_tokens",
                "restarts"):
        yield f"perilune_{key}", {}, float(status[key])
    for key in ("staleness_mean_versions", "staleness_max_versions"):
        yield f"perilune_{key}", {}, float(status["latest"].get(f"schedule/{key}", 0.0))
    for name, version in status["serving"].items():
        yield "perilune_generator_version", {"actor": name}, float(version)
    for name, depth in status["queues"].items():
        yield "perilune_queue_depth", {"queue": name}, float(depth)
    if status["rewards"]:
        yield "perilune_reward_mean", {}, float(status["rewards"][-1])


class LiveMetrics:
    """Gauges in a process that is connected to Ray."""

    def __init__(self, run: str) -> None:
        """Make the gauges; ``run`` tags each of them, since several runs may share a cluster."""
        from ray.util.metrics import Gauge

        self._gauges = {name: Gauge(name, text, ("run", *tags)) for name, (text, tags) in GAUGES.items()}
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run})
        self._seen: set[tuple[str, tuple[tuple[str, str], ...]]] = set()

    def show(self, status: Mapping[str, Any]) -> None:
        """Set every gauge; those of actors that are gone fall to 0."""
        now = set()
        for name, tags, value in readings(status):
            self._gauges[name].set(value, tags=tags)
            now.add((name, tuple(tags.items())))
        for name, gone in self._seen - now:
            self._gauges[name].set(0.0, tags=dict(gone))
        self._seen = now

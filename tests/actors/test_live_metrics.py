"""What a status says in numbers, that Ray takes it, and that the dashboard asks for nothing else."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

from actors.live_metrics import GAUGES, LiveMetrics, readings

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana.json"
STATUS = {
    "at": 10.0, "actors": {"learner": {"state": "update", "since": 7.5}, "judge#1": {"state": "idle", "since": 2.0}},
    "version": "0.3", "updates": 3, "total_updates": 9, "oldest_outstanding_versions": 2, "tokens_per_second": 50.0,
    "generated_tokens": 400, "restarts": 1, "serving": {"generator-0#1": 2}, "queues": {"flying_trajectories": 6},
    "latest": {"schedule/staleness_mean_versions": 0.5, "schedule/staleness_max_versions": 2.0},
    "rewards": [0.1, 0.7],
}


class Gauge:
    """Ray's, as far as it is used: a name, tags that must be declared, a value."""

    made: ClassVar[dict[str, "Gauge"]] = {}

    def __init__(self, name, description, tag_keys) -> None:
        self.tag_keys, self.values, self.default = set(tag_keys), {}, {}
        Gauge.made[name] = self

    def set_default_tags(self, tags) -> None:
        self.default = tags

    def set(self, value, tags) -> None:
        assert tags.keys() | self.default.keys() == self.tag_keys
        self.values[tuple(tags.values())] = value


@pytest.fixture
def live(monkeypatch):
    module = ModuleType("ray.util.metrics")
    module.Gauge = Gauge
    monkeypatch.setitem(sys.modules, "ray.util.metrics", module)
    return LiveMetrics("quickstart")


def test_every_gauge_is_read_from_a_status():
    found = {name for name, _, _ in readings(STATUS)}
    assert found == set(GAUGES)
    for name, tags, _ in readings(STATUS):
        assert tuple(tags) == GAUGES[name][1]


def test_before_there_is_a_driver_only_actors_are_told_of():
    early = {"at": 10.0, "actors": STATUS["actors"]}
    assert {name for name, _, _ in readings(early)} == {"perilune_actor_silent_seconds"}


def test_gauges_are_set_and_those_of_the_gone_fall_to_zero(live):
    live.show(STATUS)
    assert Gauge.made["perilune_actor_silent_seconds"].values == {("learner",): 2.5, ("judge#1",): 0.0}
    assert Gauge.made["perilune_queue_depth"].values == {("flying_trajectories",): 6.0}
    assert Gauge.made["perilune_reward_mean"].values == {(): 0.7}
    live.show(STATUS | {"serving": {"generator-0#2": 3}})
    assert Gauge.made["perilune_generator_version"].values == {("generator-0#1",): 0.0, ("generator-0#2",): 3.0}
    assert Gauge.made["perilune_updates"].default == {"run": "quickstart"}


def test_the_dashboard_asks_for_exported_metrics_and_shows_all_of_them():
    board = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = {name for text in expressions for name in re.findall(r"ray_(\w+)\{", text)}
    assert asked == set(GAUGES)
    labels = {label for panel in board["panels"] for target in panel["targets"]
              for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])}
    assert labels <= {tag for _, tags in GAUGES.values() for tag in tags}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])

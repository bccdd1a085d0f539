from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.config.cluster import (
    ActorResources,
    ClusterConfig,
    Placement,
    ResourcesConfig,
    ThreadsConfig,
    WeightChannelKind,
    WeightsConfig,
)
from engine.errors import ConfigError

WHOLE = ActorResources(gpus=1.0)


@pytest.mark.parametrize(("cls", "options", "key"), [
    (WeightsConfig, {"bucket_mib": 0}, "weights.bucket_mib"),
    (WeightsConfig, {"deadline_s": 0.0}, "weights.deadline_s"),
    (WeightsConfig, {"gather_s": -0.1}, "weights.gather_s"),
    (WeightsConfig, {"gather_s": 31.0}, "weights.gather_s"),
    (WeightsConfig, {"host": ""}, "weights.host"),
    (WeightsConfig, {"path": "a.b"}, "weights.path"),
    (WeightsConfig, {"channel": WeightChannelKind.dotted}, "weights.path"),
    (ThreadsConfig, {"generator": 0}, "cluster.threads.generator"),
    (ThreadsConfig, {"learner": 0}, "cluster.threads.learner"),
    (ThreadsConfig, {"evaluator": 0}, "cluster.threads.evaluator"),
    (ClusterConfig, {"start_deadline_s": 0.0}, "cluster.start_deadline_s"),
    (ClusterConfig, {"call_deadline_s": -1.0}, "cluster.call_deadline_s"),
    (ClusterConfig, {"restart_window_s": 0.0}, "cluster.restart_window_s"),
    (ClusterConfig, {"object_store_mib": 79}, "cluster.object_store_mib"),
    (ClusterConfig, {"max_restarts": -1}, "cluster.max_restarts"),
    (ClusterConfig, {"address": "nowhere"}, "cluster.address"),
    (ClusterConfig, {"address": "http://127.0.0.1:8265"}, "cluster.address"),
    (ClusterConfig, {"address": "ray://127.0.0.1:10001"}, "cluster.address"),
    (ActorResources, {"cpus": -1.0}, "cluster.resources.*.cpus"),
    (ActorResources, {"custom": {"rack": -1.0}}, "cluster.resources.*.rack"),
], ids=str)
def test_what_cannot_work_is_refused(refused: Callable[..., None], cls: Any, options: dict[str, Any],
                                     key: str) -> None:
    refused(cls, options, key)


def test_one_gpu_is_not_shared_by_those_who_ask_for_more() -> None:
    resources = ResourcesConfig(learner=WHOLE, generator=WHOLE)
    assert ClusterConfig(resources=resources).placement is Placement.disaggregated
    with pytest.raises(ConfigError, match=r"cluster.placement='colocated': .* share one GPU but ask for 2"):
        ClusterConfig(placement=Placement.colocated, resources=resources)


def test_limits_themselves_are_fine() -> None:
    assert ClusterConfig(object_store_mib=80, max_restarts=0).threads.generator >= 1
    assert WeightsConfig(bucket_mib=1).folder

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.config.cluster import ClusterConfig, ThreadsConfig, WeightsConfig


@pytest.mark.parametrize(("cls", "options", "key"), [
    (WeightsConfig, {"bucket_mib": 0}, "weights.bucket_mib"),
    (WeightsConfig, {"deadline_s": 0.0}, "weights.deadline_s"),
    (ThreadsConfig, {"generator": 0}, "cluster.threads.generator"),
    (ThreadsConfig, {"learner": 0}, "cluster.threads.learner"),
    (ThreadsConfig, {"evaluator": 0}, "cluster.threads.evaluator"),
    (ClusterConfig, {"start_deadline_s": 0.0}, "cluster.start_deadline_s"),
    (ClusterConfig, {"call_deadline_s": -1.0}, "cluster.call_deadline_s"),
    (ClusterConfig, {"restart_window_s": 0.0}, "cluster.restart_window_s"),
    (ClusterConfig, {"object_store_mib": 79}, "cluster.object_store_mib"),
    (ClusterConfig, {"max_restarts": -1}, "cluster.max_restarts"),
], ids=str)
def test_what_cannot_work_is_refused(refused: Callable[..., None], cls: Any, options: dict[str, Any],
                                     key: str) -> None:
    refused(cls, options, key)


def test_limits_themselves_are_fine() -> None:
    assert ClusterConfig(object_store_mib=80, max_restarts=0).threads.generator >= 1
    assert WeightsConfig(bucket_mib=1).folder

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.config.base import as_dict
from engine.config.cluster import (
    ActorResources,
    ClusterConfig,
    ClusterKind,
    Device,
    Placement,
    ResourcesConfig,
    WeightChannelKind,
    WeightsConfig,
)
from engine.config.learning import Baseline, LearningConfig, MirrorDescentConfig
from engine.config.model import AdapterConfig, ModelConfig, ModelSource
from engine.config.rollout import GeneratorConfig, RolloutConfig
from engine.config.run import CanaryConfig, EvaluationConfig, Only, RunConfig, TrainConfig
from engine.config.schedule import ScheduleConfig
from engine.errors import ConfigError

SHARED = ClusterConfig(placement=Placement.colocated)
RESET = LearningConfig(reset_optimiser=True)
ROUNDS = {"kind": "iterative", "round_budget_tokens": 16}


@pytest.mark.parametrize(("cls", "options", "key"), [
    (EvaluationConfig, {"every": -1}, "evaluation.every"),
    (EvaluationConfig, {"samples": -1}, "evaluation.samples"),
    (EvaluationConfig, {"temperature": 0.0}, "evaluation.temperature"),
    (EvaluationConfig, {"slots": 0}, "evaluation.slots"),
    (CanaryConfig, {"prompts": -1}, "canary.prompts"),
    (CanaryConfig, {"threshold_nats": 0.0}, "canary.threshold_nats"),
    (RunConfig, {"rollout": RolloutConfig(samples_per_prompt=1)}, "rollout.samples_per_prompt"),
    (RunConfig, {"learning": RESET}, "learning.reset_optimiser"),
    (RunConfig, {"cluster": SHARED, "schedule": ScheduleConfig(kind="async", max_staleness=1)}, "cluster.placement"),
    (RunConfig, {"cluster": SHARED, "weights": WeightsConfig(channel=WeightChannelKind.nccl)}, "weights.channel"),
    (RunConfig, {"schedule": ScheduleConfig(**ROUNDS, max_staleness=2)}, "schedule.max_staleness"),
    (RunConfig, {"generator": GeneratorConfig(context_tokens=575)}, "generator.context_tokens"),
    (RunConfig, {"train": TrainConfig(only=Only.learn)}, "train.rollouts"),
    (RunConfig, {"learning": LearningConfig(num_learners=2)}, "learning.num_learners"),
], ids=str)
def test_what_cannot_work_is_refused(refused: Callable[..., None], cls: Any, options: dict[str, Any],
                                     key: str) -> None:
    refused(cls, options, key)


@pytest.mark.parametrize("options", [
    {},
    {"rollout": RolloutConfig(samples_per_prompt=1), "loss": MirrorDescentConfig(baseline=Baseline.none)},
    {"learning": LearningConfig(reset_optimiser=True, allow_reset_with_one_step=True)},
    {"learning": RESET, "schedule": ScheduleConfig(steps_per_update=2)},
    {"schedule": ScheduleConfig(**ROUNDS, max_staleness=3)},
    {"schedule": ScheduleConfig(kind="async", round_budget_tokens=16, max_staleness=1)},
    {"generator": GeneratorConfig(context_tokens=576)},
    {"train": TrainConfig(only=Only.learn, rollouts="runs/a/rollouts")},
], ids=str)
def test_what_works_is_taken(options: dict[str, Any]) -> None:
    config = RunConfig(**options)
    assert all(getattr(config, name) is value for name, value in options.items())


def test_the_remedy_names_the_smallest_bound_that_works() -> None:
    with pytest.raises(ConfigError, match=r"takes 4 rounds.*give at least 3"):
        RunConfig(schedule=ScheduleConfig(**ROUNDS, max_staleness=2))


def test_several_learners_need_processes_work_and_whole_weights() -> None:
    ray, few = ClusterConfig(kind=ClusterKind.ray), ScheduleConfig(batch_groups=2, steps_per_update=2)
    options: dict[str, Any] = {"rollout": RolloutConfig(samples_per_prompt=4), "schedule": few}
    two, five = LearningConfig(num_learners=2), LearningConfig(num_learners=5)
    assert RunConfig(learning=two, cluster=ray, **options).learning is two
    with pytest.raises(ConfigError, match=r"learning\.num_learners=2.*cluster=ray"):
        RunConfig(learning=two, **options)
    with pytest.raises(ConfigError, match=r"learning\.num_learners=5: an optimiser step has 4 trajectories"):
        RunConfig(learning=five, cluster=ray, **options)
    adapted = ModelConfig(source=ModelSource.packaged, adapter=AdapterConfig(rank=4))
    with pytest.raises(ConfigError, match=r"model\.adapter\.rank=0"):
        RunConfig(learning=two, cluster=ray, model=adapted, **options)


def test_no_two_learners_share_a_gpu() -> None:
    def run(learner: float, generator: float = 0.0, **options: Any) -> RunConfig:
        asked = ResourcesConfig(learner=ActorResources(gpus=learner), generator=ActorResources(gpus=generator))
        cluster = ClusterConfig(**{"kind": ClusterKind.ray, "device": Device.cuda, "resources": asked, **options})
        return RunConfig(learning=LearningConfig(num_learners=2), cluster=cluster)

    for gpus in (0.0, 0.5):
        with pytest.raises(ConfigError, match=rf"cluster\.resources\.learner\.gpus={gpus}: NCCL .* one for each"):
            run(gpus, generator=0.5)
    for gpus in (0.6, 1.0):
        run(gpus)
    run(0.5, device=Device.cpu)
    run(0.4, generator=0.4, placement=Placement.colocated)
    with pytest.raises(ConfigError, match="one for each learner"):
        run(0.2, generator=0.3, placement=Placement.colocated)


def test_as_dict_holds_every_group_as_plain_data() -> None:
    tree = as_dict(RunConfig())
    assert set(tree) == {
        "seed", "run", "prompts", "rollout", "reward", "model", "loss", "learning", "schedule", "generator",
        "weights", "cluster", "evaluation", "canary", "train",
    }
    assert tree["model"]["source"] == "packaged"
    assert tree["learning"]["optimiser"]["schedule"] == "constant"

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(item) for key, item in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or type(value) in (bool, int, float, str)

    assert plain(tree)


def test_the_tree_is_sealed() -> None:
    config = RunConfig()
    with pytest.raises(ConfigError, match="sealed"):
        config.seed = 1
    with pytest.raises(ConfigError, match="sealed"):
        config.learning.optimiser.learning_rate = 1.0

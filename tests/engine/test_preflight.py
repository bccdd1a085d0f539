from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.config.cluster import (
    ActorResources,
    ClusterConfig,
    ClusterKind,
    Device,
    ResourcesConfig,
    WeightsConfig,
)
from engine.config.learning import Baseline, LearningConfig, MirrorDescentConfig
from engine.config.model import ModelConfig, ModelSource, ScratchConfig
from engine.config.prompts import PromptsConfig
from engine.config.rollout import GeneratorConfig, RolloutConfig
from engine.config.run import RunConfig
from engine.errors import ConfigError, ModelError
from engine.models.policy import published_tensors, save_policy, scratch_network
from engine.preflight import check, needs, num_parameters


def config(**changes: object) -> RunConfig:
    groups: dict[str, object] = {
        "prompts": PromptsConfig(num_train=8, num_heldout=4),
        "rollout": RolloutConfig(max_prompt_tokens=128, max_response_tokens=32),
        "model": ModelConfig(source=ModelSource.scratch, scratch=ScratchConfig(layers=1, width=16, heads=1)),
    }
    return RunConfig(**{**groups, **changes})  # type: ignore[arg-type]


def test_what_it_found_is_handed_on() -> None:
    checked = check(config())
    assert (len(checked.prompts.train), len(checked.prompts.heldout)) == (8, 4)
    assert checked.folder is None
    assert checked.tokenizer.render(checked.prompts.train[0]).size > 10


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rollout": RolloutConfig(max_prompt_tokens=8, max_response_tokens=8)}, "rollout.max_prompt_tokens"),
        ({"rollout": RolloutConfig(max_prompt_tokens=250, max_response_tokens=256)}, "rollout.max_response_tokens"),
        ({"rollout": RolloutConfig(max_prompt_tokens=250, max_response_tokens=230)}, "rollout.max_response_tokens"),
        ({"weights": WeightsConfig(folder="/nowhere")}, "weights.folder"),
        ({"loss": MirrorDescentConfig(tau=0.0, baseline=Baseline.log_mean_exp)}, "loss"),
    ],
)
def test_what_cannot_work_is_refused_with_its_key(changes: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check(config(**changes))
    assert raised.value.key.startswith(key)


def test_a_missing_model_folder_is_named(tmp_path: Path) -> None:
    model = ModelConfig(source=ModelSource.folder, path=str(tmp_path / "none"))
    with pytest.raises(ModelError, match=r"none.*config\.json"):
        check(config(model=model))


def test_parameters_are_counted_from_the_configuration(tmp_path: Path) -> None:
    network, tokenizer = scratch_network(ScratchConfig(layers=2, width=32, heads=2, intermediate=48), seed=0)
    save_policy(network, published_tensors(network), tokenizer, tmp_path)
    architecture = json.loads((tmp_path / "config.json").read_text())
    norms = 32 * 5
    assert num_parameters(architecture) == sum(p.numel() for p in network.parameters()) - norms
    assert num_parameters({}) == 0


def test_a_gpu_that_is_not_there_is_missed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"cluster.device='cuda': torch sees no GPU here"):
        check(config(cluster=ClusterConfig(device=Device.cuda)))
    elsewhere = ClusterConfig(kind=ClusterKind.ray, address="far:6379", device=Device.cuda)
    assert check(config(cluster=elsewhere)).folder is None, "this machine need not compute"


def test_what_is_asked_of_ray_is_summed_up() -> None:
    own = ResourcesConfig(learner=ActorResources(gpus=1.0), generator=ActorResources(cpus=2.0, custom={"rack": 0.5}))
    chosen = config(cluster=ClusterConfig(resources=own), generator=GeneratorConfig(num_generators=3))
    assert needs(chosen, {})["asked_of_ray"] == {"gpus": 1.0, "cpus": 6.0, "rack": 1.5}
    assert needs(config(), {})["asked_of_ray"] == {}


def test_a_dry_run_knows_bytes_and_processes() -> None:
    chosen = config()
    told = needs(chosen, {})
    assert told["processes"] == ["all in this one"]
    over_ray = replace(chosen, cluster=ClusterConfig(kind=ClusterKind.ray))
    assert "generator-0" in needs(over_ray, {})["processes"]
    own = ClusterConfig(kind=ClusterKind.ray, resources=ResourcesConfig(learner=ActorResources(gpus=1.0)))
    two = replace(over_ray, cluster=own, learning=LearningConfig(num_learners=2))
    assert [name for name in needs(two, {})["processes"] if "learner" in name] == ["learner", "learner-1"]
    assert needs(two, {})["asked_of_ray"] == {"gpus": 2.0}
    architecture = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96,
                    "vocab_size": 50}
    told = needs(two, architecture)
    one, each = told["learner_bytes"], told["learner_bytes_each"]
    assert each == one // 2 > 0

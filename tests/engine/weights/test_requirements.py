from dataclasses import replace

import pytest
import torch

from engine.config.cluster import (
    ActorResources,
    ClusterConfig,
    ClusterKind,
    Device,
    ResourcesConfig,
    WeightChannelKind,
    WeightsConfig,
)
from engine.config.run import RunConfig
from engine.errors import ConfigError
from engine.weights import requirements
from engine.weights.requirements import check_channel

NOBODY_ASKS = (0.0, 0.0, 0.0)
"""All see the GPUs that there are, and compute on the first."""
GPUS = {"nccl": (1.0, 1.0, 1.0)}
"""Of learner, generator and evaluator."""


def run_with(kind, cluster=ClusterKind.ray, address="local", device=Device.auto, gpus=None, **options):
    learner, generator, evaluator = (ActorResources(gpus=amount) for amount in gpus or GPUS.get(kind, NOBODY_ASKS))
    resources = ResourcesConfig(learner=learner, generator=generator, evaluator=evaluator)
    return replace(RunConfig(), weights=WeightsConfig(channel=WeightChannelKind(kind), **options),
                   cluster=ClusterConfig(kind=cluster, address=address, device=device, resources=resources))


def refused(config):
    with pytest.raises(ConfigError) as caught:
        check_channel(config)
    return caught.value.key, caught.value.remedy


@pytest.fixture
def machine(monkeypatch):
    def has(gpu, cupy):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(requirements.importlib.util, "find_spec", lambda name: object() if cupy else None)

    return has


@pytest.mark.parametrize("kind", ["nccl", "cuda_ipc"])
def test_a_channel_on_gpus_needs_one_and_processes(machine, kind):
    machine(gpu=False, cupy=True)
    assert refused(run_with(kind)) == (
        "weights.channel", "this machine has no GPU that torch can use: give weights=shared_memory or object_store"
    )
    machine(gpu=True, cupy=True)
    assert "cluster=ray" in refused(run_with(kind, cluster=ClusterKind.serial))[1]
    assert refused(run_with(kind, device=Device.cpu))[0] == "cluster.device"
    check_channel(run_with(kind))


def test_nccl_needs_cupy_and_says_how_to_get_it(machine):
    machine(gpu=True, cupy=False)
    key, remedy = refused(run_with("nccl"))
    assert key == "weights.channel"
    assert "pip install cupy-cuda13x" in remedy
    check_channel(run_with("cuda_ipc"))


@pytest.mark.parametrize("gpus", [0.0, 0.5])
def test_nccl_needs_whole_gpus_unless_told_to_share_them(machine, monkeypatch, gpus):
    gpus = (1.0, gpus, 1.0)
    machine(gpu=True, cupy=True)
    monkeypatch.delenv("NCCL_MULTI_RANK_GPU_ENABLE", raising=False)
    key, remedy = refused(run_with("nccl", gpus=gpus))
    assert key == "cluster.resources.generator.gpus"
    assert "give cluster=gpus" in remedy
    monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    check_channel(run_with("nccl", gpus=gpus))


@pytest.mark.parametrize("address", ["local", "10.0.0.1:6379"])
@pytest.mark.parametrize(("gpus", "total"), [((1.0, 1.0, 1.0), "3"), ((1.0, 0.0, 1.0), "2"), ((0.5, 0.4, 0.2), "1.1")])
def test_memory_of_one_gpu_is_not_for_those_who_ask_for_more(machine, gpus, total, address):
    machine(gpu=True, cupy=False)
    key, remedy = refused(run_with("cuda_ipc", address=address, gpus=gpus))
    assert key == "weights.channel"
    assert f"ask for {total} GPUs together" in remedy
    assert "cluster.device=cuda" in remedy
    for shared in ((0.5, 0.3, 0.2), (1.0, 0.0, 0.0)):
        check_channel(run_with("cuda_ipc", address=address, gpus=shared))


def test_every_generator_counts_where_one_gpu_is_shared(machine):
    machine(gpu=True, cupy=False)
    config = run_with("cuda_ipc", gpus=(0.5, 0.3, 0.2))
    more = replace(config, generator=replace(config.generator, num_generators=2))
    assert "ask for 1.3 GPUs together" in refused(more)[1]


@pytest.mark.parametrize("gpus", [(1.0, 0.0, 0.0), (0.6, 0.2, 0.2), NOBODY_ASKS])
def test_memory_of_one_gpu_is_not_for_several_learners(machine, gpus):
    machine(gpu=True, cupy=False)
    config = run_with("cuda_ipc", gpus=gpus)
    check_channel(config)
    key, remedy = refused(replace(config, learning=replace(config.learning, num_learners=2)))
    assert key == "learning.num_learners"
    assert "weights=nccl" in remedy


def test_what_a_cluster_has_is_not_known_here_but_loopback_is(machine):
    machine(gpu=False, cupy=False)
    assert refused(run_with("nccl", address="10.0.0.1:6379"))[0] == "weights.host"
    check_channel(run_with("nccl", address="10.0.0.1:6379", host="route"))


@pytest.mark.parametrize("kind", ["shared_memory", "cuda_ipc"])
def test_a_folder_that_is_used_must_be_there(machine, kind):
    machine(gpu=True, cupy=True)
    assert refused(run_with(kind, folder="/nowhere"))[0] == "weights.folder"


@pytest.mark.parametrize("cluster", list(ClusterKind))
def test_an_object_store_needs_nothing(machine, cluster):
    machine(gpu=False, cupy=False)
    check_channel(run_with("object_store", cluster=cluster, folder="/nowhere"))


def test_a_dotted_path_must_lead_to_two_ends():
    assert refused(run_with("dotted", path="math.nothing"))[0] == "weights.path"
    assert "sender and receiver" in refused(run_with("dotted", path="math.pi"))[1]

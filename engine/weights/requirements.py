"""What the chosen weight channel needs of this machine and of the run, said before any process starts."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch

from engine.config.cluster import SHARED_GPUS, ClusterKind, Device, WeightChannelKind
from engine.config.rollout import GeneratorKind
from engine.config.run import RunConfig
from engine.errors import ConfigError
from engine.weights.channel import dotted_channel

_ON_GPUS = (WeightChannelKind.nccl, WeightChannelKind.cuda_ipc)
_IN_A_FOLDER = (WeightChannelKind.shared_memory, WeightChannelKind.cuda_ipc)


def check_channel(config: RunConfig) -> None:
    """Refuse a channel that cannot work.

    What a machine of a named cluster has is not known here; there the actors' ends say it when they start.

    Raises:
        ConfigError: with the dotted key, the value and the remedy.
    """
    weights, kind = config.weights, config.weights.channel
    if kind is WeightChannelKind.dotted:
        dotted_channel(weights)
    if kind in _IN_A_FOLDER:
        folder = Path(weights.folder)
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ConfigError("weights.folder", weights.folder, "give a folder that can be written, best in memory")
    if kind in _ON_GPUS:
        _check_gpu(config)
    if kind is WeightChannelKind.nccl and os.environ.get(SHARED_GPUS) != "1":
        _check_own_gpus(config)
    if kind is WeightChannelKind.cuda_ipc:
        _check_one_gpu(config)
    if kind is WeightChannelKind.nccl and config.cluster.address != "local" and weights.host.startswith("127."):
        raise ConfigError("weights.host", weights.host,
                          "generators on other machines cannot reach it: give weights.host=route, or an address of the "
                          "learner's machine in the cluster's network")


def _check_own_gpus(config: RunConfig) -> None:
    for role in ("learner", "generator", "evaluator"):
        gpus = getattr(config.cluster.resources, role).gpus
        if gpus < 1:
            raise ConfigError(f"cluster.resources.{role}.gpus", gpus,
                              "NCCL broadcasts between whole GPUs of each actor's own: give cluster=gpus, or set "
                              f"{SHARED_GPUS}=1 where NCCL can share them")


def _check_one_gpu(config: RunConfig) -> None:
    asked, learners = config.cluster.resources, config.learning.num_learners
    if learners > 1:
        # NCCL wants a GPU for each, and only colocated with a single generator would all others share that of rank 0.
        raise ConfigError("learning.num_learners", learners,
                          "channel cuda_ipc is memory of one GPU, but several learners have one each: give 1, or "
                          "weights=nccl, shared_memory or object_store")
    gpus = asked.learner.gpus + config.generator.num_generators * asked.generator.gpus + asked.evaluator.gpus
    if gpus > 1 + 1e-6:  # Ray gives whoever asks for more than is left of a GPU another one
        raise ConfigError("weights.channel", WeightChannelKind.cuda_ipc.value,
                          "it is memory of one GPU, but the learner, the generators and the evaluator ask for "
                          f"{gpus:g} GPUs together: give cluster.resources.*.gpus that make at most 1, cluster=ray "
                          "cluster.device=cuda where one GPU is all there is, or weights=nccl between several")


def _check_gpu(config: RunConfig) -> None:
    kind = config.weights.channel
    if config.cluster.kind is ClusterKind.serial:
        raise ConfigError("weights.channel", kind.value,
                          "its ends must be processes of their own: give cluster=ray, or weights=shared_memory")
    if config.cluster.device is Device.cpu and config.generator.kind is GeneratorKind.native:
        raise ConfigError("cluster.device", "cpu",
                          f"channel {kind.value} ends on GPUs: give cluster.device=cuda, or weights=shared_memory")
    if config.cluster.address != "local":
        return
    if not torch.cuda.is_available():
        raise ConfigError("weights.channel", kind.value,
                          "this machine has no GPU that torch can use: give weights=shared_memory or object_store")
    if kind is WeightChannelKind.nccl and importlib.util.find_spec("cupy") is None:
        raise ConfigError("weights.channel", kind.value,
                          "cupy is not installed: pip install cupy-cuda13x, or install the extra nccl")

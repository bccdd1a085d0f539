"""The two ends of the weight channel, and how a run opens them.

Two phases: the learner publishes bytes and a manifest; each generator receives into staging, verifies, and
acknowledges (version, digest) after its swap. What does not verify is refused, never served.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from engine.config.cluster import WeightChannelKind, WeightsConfig
from engine.errors import ConfigError
from engine.records.manifest import Manifest
from engine.records.version import PolicyVersion
from engine.weights import nccl
from engine.weights.broadcast import BroadcastReceiver, BroadcastSender
from engine.weights.cuda_driver import CudaDriver
from engine.weights.cuda_ipc import CudaIpcReceiver, CudaIpcSender
from engine.weights.layout import StagedWeights, weights_digest
from engine.weights.object_store import ObjectStore, ObjectStoreReceiver, ObjectStoreSender
from engine.weights.shared_memory import SharedMemoryReceiver, SharedMemorySender

__all__ = [
    "StagedWeights",
    "WeightChannel",
    "WeightReceiver",
    "WeightSender",
    "dotted_channel",
    "open_receiver",
    "open_sender",
    "weights_digest",
]


class WeightSender(Protocol):
    """The learner's end."""

    def publish(self, tensors: Mapping[str, Tensor], version: PolicyVersion) -> Manifest:
        """Make one version available and describe it.

        Raises:
            WeightChannelError: it cannot be written whole.
        """

    def retire(self, version: PolicyVersion) -> None:
        """Take back a version that nobody may start to receive any more."""

    def close(self) -> None:
        """Leave nothing behind; twice is harmless."""


class WeightReceiver(Protocol):
    """A generator's end."""

    def receive(self, manifest: Manifest) -> StagedWeights:
        """Bring one version into staging and verify it there.

        Raises:
            WeightChannelError: the bytes are not those of the manifest; earlier versions stay intact.
        """

    def close(self) -> None:
        """Let go of the staging memory; twice is harmless."""


class WeightChannel(Protocol):
    """What ``weights.path`` names for ``weights.channel=dotted``: a module or an object with these two."""

    def sender(self, config: WeightsConfig, run_id: str, dtype: torch.dtype | None) -> WeightSender:
        """The learner's end; ``dtype``: type in which floating tensors travel, None: each its own."""

    def receiver(self, config: WeightsConfig, run_id: str) -> WeightReceiver:
        """A generator's end."""


def open_sender(config: WeightsConfig, run_id: str, dtype: torch.dtype | None = None,
                store: ObjectStore | None = None) -> WeightSender:
    """The sender that ``weights.channel`` names.

    Args:
        config: group ``weights``.
        run_id: the run folder's id; sender and receivers of a run share it.
        dtype: type in which floating tensors travel, the generators' precision; None: each its own.
        store: where channel ``object_store`` puts its objects; other channels need none.

    Raises:
        WeightChannelError: the channel cannot be opened here.
        ConfigError: ``weights.path`` leads nowhere.
    """
    kind = config.channel
    if kind is WeightChannelKind.shared_memory:
        return SharedMemorySender(config, run_id, dtype)
    if kind is WeightChannelKind.object_store:
        assert store is not None, "channel object_store is given its store"
        return ObjectStoreSender(config, run_id, store, dtype)
    if kind is WeightChannelKind.nccl:
        return BroadcastSender(config, nccl.CHANNEL, nccl.NcclCommunicators(), dtype)
    if kind is WeightChannelKind.cuda_ipc:
        return CudaIpcSender(config, run_id, CudaDriver(), dtype)
    return dotted_channel(config).sender(config, run_id, dtype)


def open_receiver(config: WeightsConfig, run_id: str, store: ObjectStore | None = None) -> WeightReceiver:
    """The receiver that ``weights.channel`` names; arguments and errors as for :func:`open_sender`."""
    kind = config.channel
    if kind is WeightChannelKind.shared_memory:
        return SharedMemoryReceiver(config, run_id)
    if kind is WeightChannelKind.object_store:
        assert store is not None, "channel object_store is given its store"
        return ObjectStoreReceiver(config, store)
    if kind is WeightChannelKind.nccl:
        return BroadcastReceiver(config, nccl.CHANNEL, nccl.NcclCommunicators())
    if kind is WeightChannelKind.cuda_ipc:
        return CudaIpcReceiver(config, run_id, CudaDriver())
    return dotted_channel(config).receiver(config, run_id)


def dotted_channel(config: WeightsConfig) -> WeightChannel:
    """What ``weights.path`` names.

    Raises:
        ConfigError: it leads nowhere, or to something without the two ends.
    """
    from engine.rewards.judge import resolve_dotted  # which loads every judge

    found = resolve_dotted(config.path, "weights.path")
    if not (callable(getattr(found, "sender", None)) and callable(getattr(found, "receiver", None))):
        raise ConfigError("weights.path", config.path, "it needs functions sender and receiver: see docs/weights.md")
    channel: WeightChannel = found
    return channel

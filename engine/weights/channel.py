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
from engine.records.manifest import Manifest
from engine.records.version import PolicyVersion
from engine.weights.layout import StagedWeights, weights_digest
from engine.weights.shared_memory import SharedMemoryReceiver, SharedMemorySender

__all__ = [
    "StagedWeights",
    "WeightReceiver",
    "WeightSender",
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


_SENDERS = {WeightChannelKind.shared_memory: SharedMemorySender}
_RECEIVERS = {WeightChannelKind.shared_memory: SharedMemoryReceiver}


def open_sender(config: WeightsConfig, run_id: str, dtype: torch.dtype | None = None) -> WeightSender:
    """The sender that ``weights.channel`` names.

    Args:
        config: group ``weights``.
        run_id: the run folder's id; sender and receivers of a run share it.
        dtype: type in which floating tensors travel, the generators' precision; None: each its own.

    Raises:
        WeightChannelError: the channel cannot be opened here.
    """
    return _SENDERS[config.channel](config, run_id, dtype)


def open_receiver(config: WeightsConfig, run_id: str) -> WeightReceiver:
    """The receiver that ``weights.channel`` names."""
    return _RECEIVERS[config.channel](config, run_id)

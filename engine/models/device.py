"""The device that an actor computes on."""

from __future__ import annotations

import torch

from engine.config.cluster import Device
from engine.errors import ConfigError


def torch_device(device: Device) -> torch.device:
    """The processor, or the first GPU that this process sees.

    Raises:
        ConfigError: a GPU is asked for and this process sees none.

    Example:
        >>> torch_device(Device.cpu)
        device(type='cpu')
    """
    there = torch.cuda.is_available()
    if device is Device.cuda and not there:
        raise ConfigError(
            "cluster.device", "cuda", "torch sees no GPU here: choose cpu or auto, install a torch for CUDA, or give "
            "the actor one with cluster.resources.<role>.gpus"
        )
    if device is Device.cpu or not there:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def give_back(device: torch.device) -> None:
    """Return memory that torch keeps for later to the device, where other processes wait for it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()

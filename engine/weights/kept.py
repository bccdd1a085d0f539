"""Versions kept in files until training has ended, when they are evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import WeightChannelError
from engine.records.manifest import Kept
from engine.records.version import PolicyVersion
from engine.weights.layout import StagedWeights, weights_digest, whole_tensors

_DIGEST = "digest"


def keep(folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, version: PolicyVersion) -> None:
    """Write one version, on the one rank that reads the weights; what an earlier life kept of this update goes.

    Args:
        folder: is made.
        tensors: as for :meth:`engine.weights.channel.WeightSender.publish`.
        dtype: that generators receive.
        version: of the weights.

    Raises:
        WeightChannelError: it cannot be written, for example because the disk is full.
    """
    held = {name: tensor.detach().to("cpu", dtype, copy=True) for name, tensor in whole_tensors(tensors).items()}
    file = folder / f"{version}.safetensors"
    temporary = file.with_suffix(".tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(held, temporary, metadata={_DIGEST: weights_digest(held)})
        temporary.replace(file)
        for other in folder.glob(f"*.{version.updates}.safetensors"):
            if other != file:
                other.unlink()
    except (SafetensorError, OSError) as error:
        raise WeightChannelError(f"{file} cannot be written ({error}): free the disk, or give "
                                 "evaluation.deferred=false") from error


def kept_in(folder: Path) -> list[Kept]:
    """What a folder holds, oldest first; nothing where there is none."""
    found = []
    for file in folder.glob("*.safetensors"):
        lineage, _, updates = file.stem.partition(".")
        found.append(Kept(PolicyVersion(int(lineage), int(updates)), str(file)))
    return sorted(found, key=lambda kept: kept.version.updates)


def read_kept(kept: Kept) -> StagedWeights:
    """The weights, once their digest is the one written with them.

    Raises:
        WeightChannelError: the file is missing or damaged.
    """
    try:
        with safe_open(kept.path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- not a mapping
            written = (file.metadata() or {}).get(_DIGEST, "")
    except (SafetensorError, OSError) as error:
        raise WeightChannelError(f"version {kept.version} cannot be read again ({error})") from error
    digest = weights_digest(tensors)
    if digest != written:
        raise WeightChannelError(f"{kept.path} is damaged: its digest is {digest}, written was {written or 'none'}")
    return StagedWeights(kept.version, digest, tensors)

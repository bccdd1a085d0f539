"""The learner's part of a checkpoint: master weights, moments and version in one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from engine.learn.step import LearnerCore
from engine.learn.tensor_file import (
    optimiser_from_tensors,
    optimiser_to_tensors,
    tensors_from_file,
    tensors_to_file,
)
from engine.records.version import PolicyVersion


def write_core(core: LearnerCore, path: Path) -> None:
    """Write the whole state of a learner.

    Raises:
        CheckpointError: it cannot be written, for example because the disk is full.
    """
    state = core.state_dict()
    optimiser = state["optimiser"]
    tensors = {f"master.{name}": tensor for name, tensor in optimiser["master"].items()}
    tensors |= {f"adam.{name}": t for name, t in optimiser_to_tensors(optimiser["adam"]).items()}
    version = state["version"]
    facts = {"steps": optimiser["steps"], "lineage": version.lineage, "updates": version.updates,
             "non_finite": state["non_finite"]}
    tensors["facts"] = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
    tensors_to_file(path, tensors)


def read_core(core: LearnerCore, path: Path, lineage: int | None = None) -> None:
    """The inverse of :func:`write_core`; the version starts a new lineage, None: the next one.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    tensors = tensors_from_file(path)
    facts = json.loads(bytes(tensors["facts"].tolist()))

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    version = PolicyVersion(facts["lineage"], facts["updates"])
    core.load_state_dict({
        "optimiser": {"master": part("master."), "adam": optimiser_from_tensors(part("adam.")),
                      "steps": facts["steps"]},
        "version": version.forked(lineage), "non_finite": facts["non_finite"],
    })

"""The learner's part of a checkpoint: a folder with one file of master weights and moments for each rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.errors import CheckpointError
from engine.learn.optimiser import MasterOptimiser
from engine.learn.parts import Parts, Rows, write_part
from engine.learn.step import LearnerCore
from engine.records.version import PolicyVersion

_SCALAR: Rows = (0, 1, 1)


def write_core(core: LearnerCore, folder: Path) -> None:
    """Write what this rank holds of the state of a learner.

    Raises:
        CheckpointError: it cannot be written, for example because the disk is full.
    """
    state, held = core.state_dict(), core.optimiser.rows()
    moments: Mapping[int, Mapping[str, Tensor]] = state["optimiser"]["adam"]["state"]
    tensors: dict[str, Tensor] = {}
    rows: dict[str, Rows] = {}
    for index, (name, master) in enumerate(state["optimiser"]["master"].items()):
        for kind, tensor in {"master": master, **moments.get(index, {})}.items():
            key = f"{kind}.{name}"
            # Adam counts its steps for every weight, in a tensor without an axis, which every rank has.
            rows[key] = held[name] if tensor.ndim else _SCALAR
            tensors[key] = tensor.reshape(-1) if not tensor.ndim else tensor
    version = state["version"]
    facts = {"steps": state["optimiser"]["steps"], "lineage": version.lineage, "updates": version.updates,
             "non_finite": state["non_finite"]}
    write_part(folder, core.ranks.rank, core.ranks.size, tensors, rows, facts)


def read_core(core: LearnerCore, folder: Path, lineage: int | None = None) -> None:
    """The inverse of :func:`write_core`, whatever number of ranks wrote.

    The version starts a new lineage, None: the next one.

    Raises:
        CheckpointError: a file is missing or damaged, or the state is of another network.
    """
    with Parts(folder) as parts:
        facts = parts.facts
        state = {"optimiser": {**_read_optimiser(core.optimiser, parts), "steps": facts["steps"]},
                 "version": PolicyVersion(facts["lineage"], facts["updates"]).forked(lineage),
                 "non_finite": facts["non_finite"]}
    core.load_state_dict(state)


def _read_optimiser(optimiser: MasterOptimiser, parts: Parts) -> dict[str, Any]:
    held = optimiser.rows()
    names = {key.partition(".")[2] for key in parts.names}
    if names != set(held):
        differ = sorted(names ^ set(held))
        raise CheckpointError(
            f"the learner's state is of another network, {len(differ)} weights differ, for example "
            f"{differ[0]!r}: resume with the model and adapter options it was written with"
        )
    kinds = sorted({key.partition(".")[0] for key in parts.names} - {"master"})
    adam: dict[int, dict[str, Tensor]] = {}
    for index, (name, rows) in enumerate(held.items()):
        for kind in kinds:
            scalar = kind == "step"
            tensor = parts.read(f"{kind}.{name}", _SCALAR if scalar else rows)
            adam.setdefault(index, {})[kind] = tensor.reshape(()) if scalar else tensor
    groups = optimiser.state_dict()["adam"]["param_groups"]
    masters = {name: parts.read(f"master.{name}", rows) for name, rows in held.items()}
    return {"master": masters, "adam": {"state": adam, "param_groups": groups}}

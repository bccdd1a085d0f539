"""A checkpoint of the whole run: one atomic folder, from which every part goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.cluster import ask
from engine.errors import CheckpointError
from engine.faults import reach
from engine.learn.checkpoint import newest_checkpoint, prune, read_checkpoint, write_checkpoint
from engine.records.arrival import Resumed
from engine.records.codec import decode, encode
from engine.run_folder import write_atomically

if TYPE_CHECKING:
    from actors.driver import Driver


def save(driver: Driver, root: Path) -> Path:
    """Write a checkpoint at a barrier: nothing flies, nothing is judged, nothing learns.

    Learner and replay write their own parts, so weights never pass through the driver.
    """
    config = driver.config

    def learner(path: Path) -> None:
        ask(driver.cluster, "learner", "write_state", path, deadline_s=config.cluster.call_deadline_s)

    driver.arrivals.flush()
    os.fsync(driver.arrivals.fileno())
    state = {
        "controller": driver.controller.state_dict(), "draw": driver.draw.state_dict(),
        "ledger": driver.ledger.state_dict(), "observer": driver.observer.state_dict(),
        "arrivals": driver.arrivals.tell(), "correct": driver.judging.correct,
        "members": driver.training.members, "batches": driver.training.batches,
    }
    version = driver.controller.version
    folder = write_checkpoint(
        root / f"update-{version.updates:06d}",
        {"learner": learner, "driver.msgpack": encode(state),
         "replay.msgpack": encode(driver.replay("state_dict"))},
        {"lineage": version.lineage, "updates": version.updates, "seed": config.seed},
        on_stage=lambda stage: reach(f"checkpoint.{stage}"),
    )
    prune(root, config.learning.keep_checkpoints)
    return folder


def restore(driver: Driver, root: Path) -> None:
    """Go on from the newest whole checkpoint under a new lineage.

    Raises:
        CheckpointError: there is none.
    """
    checkpoint = read_checkpoint(newest_checkpoint(root))
    deadline_s = driver.config.cluster.call_deadline_s
    state: dict[str, Any] = decode(checkpoint.read("driver.msgpack"))
    lineage = next_lineage(root, state["controller"]["version"].lineage)
    ask(driver.cluster, "learner", "load_state", checkpoint.path("learner"), lineage,
        deadline_s=deadline_s)
    driver.replay("load_state_dict", decode(checkpoint.read("replay.msgpack")))
    driver.controller.load_state_dict(state["controller"], lineage)
    driver.draw.load_state_dict(state["draw"])
    driver.ledger.load_state_dict(state["ledger"])
    driver.observer.load_state_dict(state["observer"], driver.controller.version.updates)
    _cut(driver, state["arrivals"])
    driver.judging.correct = {int(key): value for key, value in state["correct"].items()}
    driver.training.members = {int(key): tuple(value) for key, value in state["members"].items()}
    driver.training.batches = state["batches"]
    driver.note(Resumed(driver.controller.version))


def next_lineage(root: Path, after: int) -> int:
    """A lineage that no earlier life stamped, not even one that died before its first checkpoint.

    Args:
        root: folder of the checkpoints; the newest lineage is noted there.
        after: lineage of the checkpoint that is resumed.
    """
    file = root / ".lineage"
    used = int(file.read_text()) if file.exists() else 0
    lineage = max(used, after) + 1
    write_atomically(file, str(lineage).encode())
    return lineage


def forget(driver: Driver) -> None:
    """An earlier life left no checkpoint: its journals and metrics begin anew."""
    driver.ledger.restart()
    driver.observer.restart()
    _cut(driver, 0)


def _cut(driver: Driver, position: int) -> None:
    """Drop the events after a checkpoint.

    Raises:
        CheckpointError: the inbox on disk ends before it.
    """
    size = driver.arrivals.seek(0, os.SEEK_END)
    if size < position:
        raise CheckpointError(
            f"{driver.arrivals.name} has {size} bytes, its checkpoint stands at {position}: restore the file, "
            "or start anew with another run.dir"
        )
    driver.arrivals.truncate(position)
    driver.arrivals.seek(0, os.SEEK_END)

"""The learner's or the sampler's step without the kernels: a process that has ``PERILUNE_OPS=reference``.

``python -m tools.bench.reference_child '<json>'`` with the fields of :class:`Job`. One line asks for one step.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.ops.extension import available
from tools.bench.child import Child, Replies
from tools.bench.subject import Amounts, Subject
from tools.bench.timing import Side

_DEADLINE_S = 1800.0


@dataclass(frozen=True, slots=True)
class Job:
    """Whose step, over what."""

    subject: str
    """``learner`` or ``sampler``."""
    folder: str
    amounts: dict[str, Any]
    threads: int
    repeats: int
    """Steps that may be asked for, besides a first one."""


def reference_side(subject: Subject, name: str, repeats: int = 0) -> Child:
    """The other process; close it."""
    job = Job(name, str(subject.folder), dataclasses.asdict(subject.amounts), subject.threads, repeats)
    command = [sys.executable, "-m", __name__, json.dumps(dataclasses.asdict(job))]
    return Child("reference", command, _DEADLINE_S, {"PERILUNE_OPS": "reference"})


def side_of(job: Job) -> Side:
    """Seconds of one step in this process."""
    side: Side = importlib.import_module(f"tools.bench.{job.subject}").own_side(
        Subject(Path(job.folder), Amounts(**job.amounts), job.threads), job.repeats, 1
    )
    return side


def main() -> None:
    """Step by step."""
    assert not available(), "PERILUNE_OPS=reference was not set"
    job = Job(**json.loads(sys.argv[1]))
    replies = Replies()
    torch.set_num_threads(job.threads)
    side = side_of(job)
    while True:
        replies.wait()
        replies.send({"seconds": side()})


if __name__ == "__main__":
    main()

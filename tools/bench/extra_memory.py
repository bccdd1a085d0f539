"""Memory that one call needs beside its inputs and results, in a process of its own.

``python -m tools.bench.extra_memory '<json>'`` with the fields of :class:`MemoryJob`. What counts begins once the
inputs exist and a small call has been made.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass

import torch

from tools.bench.child import Child, Replies
from tools.bench.head_sides import HeadInputs, forward, forward_backward, sides
from tools.bench.memory import peak_bytes

_DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True)
class MemoryJob:
    """What is called."""

    side: str
    """One of ``head_sides.sides``."""
    backward: bool
    tokens: int
    width: int
    vocabulary: int
    threads: int


def extra_bytes(job: MemoryJob) -> int:
    """Highest resident size during the call, less the size before it and the results it returns."""
    child = Child("memory", [sys.executable, "-m", __name__, json.dumps(dataclasses.asdict(job))], _DEADLINE_S)
    try:
        return int(child.ask()["bytes"])
    finally:
        child.close()


def measure_here(job: MemoryJob) -> int:
    """The same in this process."""
    torch.set_num_threads(job.threads)
    call = forward_backward if job.backward else forward
    score = sides()[job.side]
    call(score, HeadInputs.draw(4, job.width, 64))
    inputs = HeadInputs.draw(job.tokens, job.width, job.vocabulary)
    results: list[torch.Tensor] = []
    risen = peak_bytes(lambda: results.extend(call(score, inputs)))
    return risen - sum(result.nbytes for result in results)


def main() -> None:
    """One answer."""
    job = MemoryJob(**json.loads(sys.argv[1]))
    replies = Replies()
    replies.wait()
    replies.send({"bytes": measure_here(job)})


if __name__ == "__main__":
    main()

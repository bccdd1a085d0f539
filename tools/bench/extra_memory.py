"""Memory that one call needs beside its inputs and results, in a process of its own.

``python -m tools.bench.extra_memory '<json>'`` with the fields of :class:`MemoryJob`. The highest resident
size of the process is set back once the inputs exist and a small call has been made, and read after the call.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from tools.bench.child import Child, Replies
from tools.bench.head_sides import HeadInputs, forward, forward_backward, sides

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
    forget_peak()
    before = resident_bytes("VmRSS")
    results = call(score, inputs)
    after = resident_bytes("VmHWM")
    return after - before - sum(result.nbytes for result in results)


def forget_peak() -> None:
    """Set the highest resident size back to the present one (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_bytes(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, field
    return int(found.group(1)) * 1024


def main() -> None:
    """One answer."""
    job = MemoryJob(**json.loads(sys.argv[1]))
    replies = Replies()
    replies.wait()
    replies.send({"bytes": measure_here(job)})


if __name__ == "__main__":
    main()

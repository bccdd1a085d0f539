"""Build the kernels for a GPU, test them there, time them, and say it all in one JSON file; nine minutes at most.

Each part runs in a process of its own with a deadline. A part that fails is reported with the end of its output, and
the next goes on. A part that is late is asked to end what it started, then killed with it; ``--limit`` is for all of
this. On one H100 with 16 cores the parts took: build 45 to 68 s, tests 42 to 74, head 120 to 180, rows 17, packed 31,
nccl 28, cuda_ipc 14, and the runs of loop as ``gpu_loop.SEEN_S`` says.

Example:
    python -m tools.check_gpu gpu.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tools.bench.deadline import within

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
LIMIT_S = 530.0
GRACE_S = 20.0
"""From the first signal to a late part until it is killed; a run over Ray needs some of it to end its Ray."""
SPREAD = ("-n", "12") if importlib.util.find_spec("xdist") else ()
"""Tests in twelve processes where pytest-xdist is installed: one that crashes is named and does not end the others."""
TESTED = ("tests/engine/ops", "tests/engine/weights", "tests/engine/models", "tests/engine/generate")


@dataclass(frozen=True, slots=True)
class Part:
    """A command, and the seconds it may take."""

    command: tuple[str, ...]
    seconds: float
    reports: bool = False
    """Whether it writes JSON to a path that it takes as its last argument."""


# The loop is last: if others are slow, it is what lacks time, and it writes down each run as soon as it has ended.
PARTS: dict[str, Part] = {
    "build": Part((PYTHON, "setup.py", "build_ext", "--inplace"), 200),
    "tests": Part((PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "--maxfail=200", "--tb=short", "-rf", "-k",
                   "cuda or gpu or nccl", *SPREAD, "--deselect", "tests/engine/ops/test_cuda_build.py", *TESTED), 150),
    "head": Part((PYTHON, "-m", "tools.bench.gpu_head"), 200, reports=True),
    "rows": Part((PYTHON, "-m", "tools.bench.gpu_rows"), 120, reports=True),
    "packed": Part((PYTHON, "-m", "tools.bench.gpu_packed"), 90, reports=True),
    "nccl": Part((PYTHON, "-m", "tools.bench.gpu_channels", "nccl"), 150, reports=True),
    "cuda_ipc": Part((PYTHON, "-m", "tools.bench.gpu_channels", "cuda_ipc"), 100, reports=True),
    "loop": Part((PYTHON, "-m", "tools.bench.gpu_loop"), 240, reports=True),
}
SEEN_S = {"build": 68.0, "tests": 74.0, "head": 180.0, "rows": 17.0, "packed": 31.0, "nccl": 28.0, "cuda_ipc": 14.0}
"""The most seconds that a part took on one H100 with 16 cores; those of ``loop`` are in ``gpu_loop.SEEN_S``."""


def run_part(part: Part, seconds: float, environment: Mapping[str, str]) -> dict[str, Any]:
    """Whether a part ended well, its seconds, the end of its output, and its own JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.json"
        command = [*part.command, *([str(path)] if part.reports else [])]
        began = time.monotonic()
        # A session of its own: a part that does not end when it is asked is killed with everything that it started.
        process = subprocess.Popen(command, cwd=ROOT, env=dict(environment), stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True)
        output, late = within(process, seconds, GRACE_S, partial(os.killpg, process.pid, signal.SIGKILL))
        with suppress(ProcessLookupError):  # a part that crashed may have left others of its session
            os.killpg(process.pid, signal.SIGKILL)
        found: dict[str, Any] = {"ok": process.returncode == 0, "timed_out": late, "returncode": process.returncode,
                                 "seconds": round(time.monotonic() - began, 1), "output": output[-100_000:]}
        if path.exists():
            found["report"] = json.loads(path.read_text())
    return found


def check(path: Path, names: Sequence[str], limit: float) -> bool:
    """Run the named parts in turn, writing after each; whether all ended well."""
    # Tests of NCCL put two ranks on one GPU where there is no second.
    environment = {"MAX_JOBS": str(os.cpu_count() or 1), "PERILUNE_CUDA": "1", "NCCL_MULTI_RANK_GPU_ENABLE": "1"}
    environment |= os.environ
    deadline = time.monotonic() + limit
    found: dict[str, Any] = {}
    for name in names:
        left = deadline - GRACE_S - time.monotonic()
        if left < 10:
            found[name] = {"ok": False, "timed_out": True, "output": "no time was left for this part"}
        else:
            found[name] = run_part(PARTS[name], min(PARTS[name].seconds, left), environment)
        part = found[name]
        print(f"{name}: {'ok' if part['ok'] else 'FAILED'}, {part.get('seconds', 0)} s", flush=True)
        if not part["ok"]:
            print(part["output"][-2500:], flush=True)
        path.write_text(json.dumps(found, indent=1))
    return all(part["ok"] for part in found.values())


def main() -> None:
    """Read the arguments, run, and end with 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="where the JSON goes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which parts, in this order")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="SECONDS", help="for all parts together")
    given = parser.parse_args()
    if not check(given.path, given.parts, given.limit):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

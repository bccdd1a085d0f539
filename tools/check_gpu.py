"""Build the kernels for a GPU, test them there, time them, and say it all in one JSON file; nine minutes at most.

Each part runs in a process of its own with a deadline. A part that fails is reported with the end of its output, and
the next goes on.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
SPREAD = ("-n", "8") if importlib.util.find_spec("xdist") else ()
"""Tests in eight processes where pytest-xdist is installed: one that crashes is named and does not end the others."""


@dataclass(frozen=True, slots=True)
class Part:
    """A command, and the seconds it may take."""

    command: tuple[str, ...]
    seconds: float
    reports: bool = False
    """Whether it writes JSON to a path that it takes as its last argument."""


PARTS: dict[str, Part] = {
    "build": Part((PYTHON, "setup.py", "build_ext", "--inplace"), 200),
    "tests": Part((PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "--maxfail=200", "--tb=short", "-rf", "-k", "cuda",
                   *SPREAD, "--deselect", "tests/engine/ops/test_cuda_build.py", "tests/engine/ops"), 150),
    "head": Part((PYTHON, "-m", "tools.bench.gpu_head"), 180, reports=True),
    "rows": Part((PYTHON, "-m", "tools.bench.gpu_rows"), 120, reports=True),
    "packed": Part((PYTHON, "-m", "tools.bench.gpu_packed"), 90, reports=True),
    "loop": Part((PYTHON, "-m", "tools.bench.gpu_loop"), 240, reports=True),
    "nccl": Part((PYTHON, "-m", "tools.bench.gpu_channels", "nccl"), 150, reports=True),
    "cuda_ipc": Part((PYTHON, "-m", "tools.bench.gpu_channels", "cuda_ipc"), 100, reports=True),
}


def run_part(part: Part, seconds: float, environment: Mapping[str, str]) -> dict[str, Any]:
    """Whether a part ended well, its seconds, the end of its output, and its own JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.json"
        command = [*part.command, *([str(path)] if part.reports else [])]
        began = time.monotonic()
        # A session of its own: a part that is late is ended with everything that it started.
        process = subprocess.Popen(command, cwd=ROOT, env=dict(environment), stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True)
        late = False
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            late = True
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        found: dict[str, Any] = {"ok": process.returncode == 0, "timed_out": late, "returncode": process.returncode,
                                 "seconds": round(time.monotonic() - began, 1), "output": output[-100_000:]}
        if path.exists():
            found["report"] = json.loads(path.read_text())
    return found


def check(path: Path, names: Sequence[str], limit: float) -> bool:
    """Run the named parts in turn, writing after each; whether all ended well."""
    environment = {"MAX_JOBS": str(os.cpu_count() or 1), "PERILUNE_CUDA": "1"} | os.environ
    deadline = time.monotonic() + limit
    found: dict[str, Any] = {}
    for name in names:
        left = deadline - time.monotonic()
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
    parser.add_argument("--limit", type=float, default=530, metavar="SECONDS", help="for all parts together")
    given = parser.parse_args()
    if not check(given.path, given.parts, given.limit):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

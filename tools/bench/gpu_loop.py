"""The whole loop on a GPU: in one process, in turns, over Ray through the channels of GPUs, and quickstart.

Each run has a process of its own: one whose CUDA context breaks does not end the others. Without ``--only`` come the
runs of ``USUAL``, which ``tools.check_gpu`` has time for.

Example:
    python -m tools.bench.gpu_loop loop.json
    python -m tools.bench.gpu_loop loop.json --only ray_cuda_ipc ray_in_turns quickstart
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.bench import gpu
from tools.bench.deadline import within
from tools.bench.gpu_channels import ONE_GPU

ROOT = Path(__file__).parents[2]
TRAIN = (sys.executable, "-m", "tools.train")
DEADLINE_S = 150.0
GRACE_S = 15.0
"""For a late run to end its Ray; less than ``tools.check_gpu`` grants a late part."""
QUIET = ("run.quiet=true", "cluster.dashboard=false")
SERIAL = ("experiment=smoke", "cluster=serial", *QUIET)
RAY = ("experiment=smoke", "cluster=ray", "schedule=async", "learning.updates=8", *QUIET)
RUNS: dict[str, tuple[str, ...]] = {
    "smoke": SERIAL,
    "smoke_in_turns": (*SERIAL, "cluster.placement=colocated", "evaluation.every=1"),
    "smoke_bfloat16": (*SERIAL, "generator.precision=bfloat16", "learning.precision=bfloat16"),
    "ray_cuda_ipc": (*RAY, "weights=cuda_ipc"),
    "ray_nccl": (*RAY, "weights=nccl"),
    "ray_in_turns": ("experiment=smoke", "cluster=colocated", *QUIET),
    "quickstart": ("experiment=quickstart", "weights=cuda_ipc", "learning.updates=16", "evaluation.every=16", *QUIET),
}
USUAL = ("smoke", "smoke_in_turns", "ray_nccl")
SEEN_S = {"smoke": 18.0, "smoke_in_turns": 5.0, "smoke_bfloat16": 5.0, "ray_cuda_ipc": 48.0, "ray_nccl": 50.0,
          "ray_in_turns": 43.0, "quickstart": 80.0}
"""Seconds of each run on one H100, the serial ones within one process; ``smoke`` made the warm start of the others."""
START_S = 10.0
"""Allowed for the start of a serial run in a process of its own, which has not been timed on a GPU."""
SHOWN = ("updates", "max_staleness_seen", "accuracy_before", "accuracy_after", "weights_digest", "trained_tokens",
         "train_seconds")


def one(overrides: tuple[str, ...], device: str, folder: Path) -> dict[str, Any]:
    """A run on a device: its seconds and what it says of itself; with an ``error`` if it did not end well."""
    began = time.monotonic()
    said = _launch([*overrides, f"cluster.device={device}", f"run.dir={folder}"])
    if said is None and not (folder / "summary.json").is_file():
        said = "it left no summary"
    if said is not None:
        return {"error": said}
    summary = json.loads((folder / "summary.json").read_text())
    closes = summary["ledger"]["closes"]
    found: dict[str, Any] = {"seconds": round(time.monotonic() - began, 2), "ledger_closes": closes}
    found |= {name: summary[name] for name in SHOWN if name in summary}
    return found if closes else found | {"error": f"its ledger does not close: {summary['ledger']}"}


def _launch(overrides: list[str]) -> str | None:
    """Run to the end; the end of the output if that was not a good one."""
    # In this process' own session: whoever kills that kills the run with it.
    process = subprocess.Popen([*TRAIN, *overrides], cwd=ROOT, env=os.environ | ONE_GPU, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, errors="replace")
    output, late = within(process, DEADLINE_S, GRACE_S)
    if late:
        output += f"\nnot ended after {DEADLINE_S:.0f} s"
    return output[-4000:] if late or process.returncode else None


def main() -> None:
    """Each run in turn; an error of any is the end, after all have had their turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(USUAL), metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("path", type=Path, help="where the JSON goes")
    given = parser.parse_args()
    # Told to end, this process first ends the run that it waits for.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    report = gpu.Report(given.path)
    report.add(**gpu.card())
    with tempfile.TemporaryDirectory() as place:
        for name in given.only:
            report.add(**{name: one(RUNS[name], "cuda", Path(place) / name)})
    if failed := [name for name in given.only if "error" in report.found[name]]:
        raise SystemExit(f"these runs fail on this GPU: {', '.join(failed)}")


if __name__ == "__main__":
    main()

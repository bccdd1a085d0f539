"""The whole loop on a GPU: in this process, in turns, over Ray through the channels of GPUs, and quickstart.

Example:
    python -m tools.bench.gpu_loop loop.json
    python -m tools.bench.gpu_loop loop.json --only ray_nccl
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

import torch

from actors.launch import compose
from actors.run import run
from engine.errors import PeriluneError
from tools.bench import gpu
from tools.bench.gpu_channels import ONE_GPU

ROOT = Path(__file__).parents[2]
DEADLINE_S = 150.0
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
SHOWN = ("updates", "max_staleness_seen", "accuracy_before", "accuracy_after", "weights_digest", "trained_tokens",
         "train_seconds")


def one(overrides: tuple[str, ...], device: str, folder: Path) -> dict[str, Any]:
    """A run on a device: its seconds and what it says of itself, or why it was refused."""
    began = time.monotonic()
    if "cluster=serial" in overrides:
        torch.cuda.reset_peak_memory_stats()
        try:
            config, text = compose([*overrides, f"cluster.device={device}", f"run.dir={folder}"])
            summary = run(config, text)
        except PeriluneError as error:
            return {"error": f"{type(error).__name__}: {error}"}
        more = {"peak_bytes": torch.cuda.max_memory_allocated()}
    else:
        said = _launch([*overrides, f"cluster.device={device}", f"run.dir={folder}"])
        if said is not None:
            return {"error": said}
        summary, more = json.loads((folder / "summary.json").read_text()), {}
    found: dict[str, Any] = {"seconds": round(time.monotonic() - began, 2), "ledger_closes": summary["ledger"]["closes"]}
    return found | {name: summary[name] for name in SHOWN if name in summary} | more


def _launch(overrides: list[str]) -> str | None:
    """A run over Ray, in a process of its own; the end of its output if it did not end well."""
    process = subprocess.Popen([sys.executable, "-m", "tools.train", *overrides], cwd=ROOT, env=os.environ | ONE_GPU,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output = f"{process.communicate()[0]}\nnot ended after {DEADLINE_S:.0f} s"
    return output[-4000:] if process.returncode else None


def main() -> None:
    """Each run in turn; an error of any is the end, after all have had their turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("path", type=Path, help="where the JSON goes")
    given = parser.parse_args()
    report = gpu.Report(given.path)
    report.add(**gpu.card())
    with tempfile.TemporaryDirectory() as place:
        for name in given.only:
            report.add(**{name: one(RUNS[name], "cuda", Path(place) / name)})
    if failed := [name for name in given.only if "error" in report.found[name]]:
        raise SystemExit(f"these runs fail on this GPU: {', '.join(failed)}")


if __name__ == "__main__":
    main()

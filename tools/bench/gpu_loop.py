"""The whole loop on a GPU, in this process: the smoke run, the same in turns, and some updates of quickstart.

Example:
    python -m tools.bench.gpu_loop loop.json
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from actors.launch import compose
from actors.run import run
from engine.errors import PeriluneError
from tools.bench import gpu

QUIET = ("cluster=serial", "run.quiet=true")
RUNS: dict[str, tuple[str, ...]] = {
    "smoke": ("experiment=smoke", *QUIET),
    "smoke_in_turns": ("experiment=smoke", *QUIET, "cluster.placement=colocated", "evaluation.every=1"),
    "smoke_bfloat16": ("experiment=smoke", *QUIET, "generator.precision=bfloat16", "learning.precision=bfloat16"),
    "quickstart": ("experiment=quickstart", *QUIET, "learning.updates=4", "evaluation.every=0",
                   "prompts.num_heldout=16"),
}
SHOWN = ("updates", "max_staleness_seen", "accuracy_before", "accuracy_after", "weights_digest", "trained_tokens")


def one(overrides: tuple[str, ...], device: str, folder: Path) -> dict[str, Any]:
    """A run on a device: its seconds and what it says of itself, or why it was refused."""
    began = time.monotonic()
    try:
        config, text = compose([*overrides, f"cluster.device={device}", f"run.dir={folder}"])
        summary = run(config, text)
    except PeriluneError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    seconds = round(time.monotonic() - began, 2)
    found: dict[str, Any] = {"seconds": seconds, "ledger_closes": summary["ledger"]["closes"]}
    return found | {name: summary[name] for name in SHOWN if name in summary}


if __name__ == "__main__":
    report = gpu.report_of_arguments(__doc__)
    with tempfile.TemporaryDirectory() as place:
        for name, overrides in RUNS.items():
            torch.cuda.reset_peak_memory_stats()
            measured = one(overrides, "cuda", Path(place) / name)
            report.add(**{name: measured | {"peak_bytes": torch.cuda.max_memory_allocated()}})
    failed = [name for name in ("smoke", "smoke_in_turns") if "error" in report.found[name]]
    if failed:
        raise SystemExit(f"the loop does not run on this GPU: {', '.join(failed)}")

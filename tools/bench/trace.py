"""What the trace costs: the same run with and without it, in turn, in one process.

One process does all the work of all actors, so nothing of the tracing is hidden behind somebody else's.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from actors.launch import compose
from actors.run import run
from engine.trace import read_trace
from tools.bench.timing import spread, take_turns

_SHORT = ("experiment=smoke", "learning.updates=2")
_LONG = ("experiment=tiny", "cluster=serial", "learning.updates=6", "evaluation.every=0")
_QUIET = ("run.quiet=true", "run.exists=overwrite", "canary.prompts=0")


def measure(scratch: Path, repeats: int, small: bool) -> dict[str, Any]:
    """``ratio_trace``: training seconds with the trace over those without, pair by pair.

    Args:
        scratch: folder for the runs.
        repeats: kept pairs.
        small: two updates of the smallest run instead of six of ``experiment=tiny``.
    """

    def once(traced: bool) -> float:
        name = "on" if traced else "off"
        overrides = [*(_SHORT if small else _LONG), *_QUIET, f"run.trace={name}", f"run.dir={scratch / name}"]
        return float(run(*compose(overrides))["train_seconds"])

    sides = {name: partial(once, name == "on") for name in ("on", "off")}
    times = take_turns(sides, repeats, warmups=0 if small else 1)
    ratios = [on / off for on, off in zip(times["on"], times["off"], strict=True)]
    file = scratch / "on" / "trace.json"
    return {
        "trace_on_seconds": spread(times["on"]), "trace_off_seconds": spread(times["off"]),
        "ratio_trace": spread(ratios), "trace_events": len(read_trace(file)),
        "trace_bytes": file.stat().st_size,
    }

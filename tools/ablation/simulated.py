"""What separate devices would give, by the planner: never measured, always said to be simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import PeriluneError
from tools.ablation.cells import Cell
from tools.pages.scale import short

Plan = Callable[[Path, Mapping[str, str]], Any]
"""Run folder and changes -> a forecast with ``measured``, ``itself``, ``predicted``, ``error`` and ``assumptions``."""
_SEPARATE = {"machines": "separate"}
_HEADER = ("", "samples a second, measured", "error of the simulation on this machine", "samples a second, simulated",
           "over the first arm", "generator idle", "learner idle")


def simulated(cells: Sequence[Cell], plan: Plan) -> dict[str, Any] | None:
    """A table with one row an arm, from the trace of its first whole run; None where no run has a trace."""
    firsts: dict[str, Cell] = {}
    for cell in cells:
        if cell.summary is not None and (cell.folder / "trace.json").exists():
            firsts.setdefault(cell.arm.name, cell)
    rows: list[list[str]] = []
    left_out, first = [], 0.0
    for name, cell in firsts.items():
        try:
            found = plan(cell.folder, _SEPARATE)
        except PeriluneError as error:
            left_out.append(f"{name}: {error}")
            continue
        speed, idle = found.predicted.samples_per_second, found.predicted.idle
        first = first or speed
        rows.append([f"{name}, seed {cell.seed}", short(found.measured.samples_per_second), f"{found.error:+.0%}",
                     short(speed), f"{speed / first:.2f}x", f"{idle['generator']:.0%}", f"{idle['learner']:.0%}"])
    if not rows:
        return None
    text = ("SIMULATED, not measured: the same controller in virtual time, with the costs of each step as the trace of "
            "one run has them, and a device of its own for every actor. The error is that of the same simulation of "
            "the run as it was made, in seconds per update.")
    return {"text": " ".join([text, *left_out]), "header": list(_HEADER), "rows": rows}

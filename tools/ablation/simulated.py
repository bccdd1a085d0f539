"""What separate devices would give, by the planner: never measured, always said to be simulated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from engine.errors import PeriluneError
from tools.ablation.cells import Cell
from tools.ablation.matching import MatchedArm, different
from tools.pages.scale import short

Plan = Callable[[Path, Mapping[str, str]], Any]
"""Run folder and changes -> a forecast with ``measured``, ``itself``, ``predicted``, ``error`` and ``assumptions``."""
_SEPARATE = {"machines": "separate"}
_HEADER = ("", "seeds", "samples a second, measured", "error of the simulation on this machine",
           "samples a second, simulated", "over", "generator idle", "learner idle")


def simulated(cells: Sequence[Cell], plan: Plan) -> dict[str, Any] | None:
    """A table with one row an arm, over its whole runs that left a trace; None where no run did.

    Every arm is divided by the first one or, where its actors live elsewhere (Ray), by the arm that is the first one
    there: costs were taken from processes of another kind.
    """
    found: defaultdict[str, list[Any]] = defaultdict(list)
    arms: dict[str, MatchedArm] = {}
    left_out = []
    for cell in cells:
        arms.setdefault(cell.arm.name, cell.arm)
        if cell.summary is None or not (cell.folder / "trace.json").exists():
            continue
        try:
            forecast = plan(cell.folder, _SEPARATE)
        except PeriluneError as error:
            left_out.append(f"{cell.name}: {error}")
            continue
        found[cell.arm.name].append(forecast)
    if not found:
        return None
    speeds = {name: fmean(one.predicted.samples_per_second for one in told) for name, told in found.items()}
    rows = [_row(name, found[name], speeds, _baseline(arm, [arms[one] for one in arms if one in found]))
            for name, arm in arms.items() if name in found]
    text = ("SIMULATED, not measured: the same controller in virtual time, with the costs of each step as the trace of "
            "one run has them, and a device of its own for every actor. Means over seeds, least and largest in "
            "brackets. The error is that of the same simulation of the run as it was made, in seconds per update. Each "
            "arm is divided by the one that is named beside it, in which the actors lived as in this one. Below "
            "stands what was assumed, as for the first run of each arm.")
    return {"text": " ".join([text, *left_out]), "header": list(_HEADER), "rows": rows,
            "assumptions": _assumptions(found)}


def _assumptions(found: Mapping[str, Sequence[Any]]) -> list[str]:
    """Of the first run of each arm, others assume their like; in brackets the arms, where it is not all of them."""
    said: dict[str, list[str]] = {}
    for name, told in found.items():
        for sentence in told[0].assumptions:
            said.setdefault(sentence, []).append(name)
    return [sentence if len(arms) == len(found) else f"{sentence} ({', '.join(arms)})"
            for sentence, arms in said.items()]


def _baseline(arm: MatchedArm, arms: Sequence[MatchedArm]) -> str:
    """Of the arms on a cluster of the same kind the one that is else as the first of all; if none is, their first."""
    like = [one for one in arms if one.config.cluster.kind is arm.config.cluster.kind]
    twins = [one for one in like if all(key.startswith("cluster.") for key in different(arms[0].flat, one.flat))]
    return (twins or like)[0].name


def _row(name: str, told: Sequence[Any], speeds: Mapping[str, float], baseline: str) -> list[str]:
    idle = [_spread([one.predicted.idle[role] for one in told], "{:.0%}".format) for role in ("generator", "learner")]
    return [name, str(len(told)), _spread([one.measured.samples_per_second for one in told], short),
            _spread([one.error for one in told], "{:+.0%}".format),
            _spread([one.predicted.samples_per_second for one in told], short),
            f"{speeds[name] / speeds[baseline]:.2f}x {baseline}", *idle]


def _spread(values: Sequence[float], say: Callable[[float], str]) -> str:
    """Mean, and least to largest where they are more than one."""
    low, high = say(min(values)), say(max(values))
    return say(fmean(values)) + (f" ({low} to {high})" if low != high else "")

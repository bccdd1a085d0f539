"""The outcome as tables, for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tools.ablation.measures import is_share, label
from tools.pages.scale import short
from tools.pages.table import Cell, Row, markdown_table

Table = tuple[Sequence[str], Sequence[Row]]
PARTS = {"speed": "tokens per second", "length": "shorter responses", "samples": "fewer samples to the target",
         "residual": "residual", "time": "time to the target"}


def measures_table(outcome: Mapping[str, Any]) -> Table:
    """Measures by arm: the mean, its 95 % interval, and where it differs from the first arm beyond the noise."""
    arms = outcome["arms"]
    names = list(dict.fromkeys(name for arm in arms for name in arm["measures"]))
    rows: list[Row] = []
    for name in names:
        values = [arm["measures"].get(name) for arm in arms]
        if any(value is not None for value in values):
            rows.append([label(name), *(_cell(name, value) for value in values)])
    return ["", *(arm["name"] for arm in arms)], rows


def _said(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if is_share(name) else short(value)


def _cell(name: str, value: Mapping[str, Any] | None) -> Cell:
    if value is None:
        return Cell("-")
    if value["low"] is None:
        return Cell(_said(name, value["mean"]), f"{value['seeds']} seed")
    if value["low"] == value["high"]:
        return Cell(_said(name, value["mean"]))
    return Cell(_said(name, value["mean"]), f"{_said(name, value['low'])} to {_said(name, value['high'])}")


def links_table(outcome: Mapping[str, Any]) -> Table:
    """Causes by part: factors above 1 are faster."""
    rows: list[Row] = []
    for link in outcome["links"]:
        name = Cell(link["cause"], f"{link['arm']} over {link['against']}")
        rows.append([name, *(_factor(link["factors"][part]) for part in PARTS)])
    return ["cause", *PARTS.values()], rows


def _factor(factor: Mapping[str, Any] | None) -> Cell:
    if factor is None:
        return Cell("-")
    if factor["low"] is None:
        return Cell(f"{factor['mean']:.2f}x", "one seed")
    if factor["low"] == factor["high"]:
        return Cell(f"{factor['mean']:.2f}x")
    noise = ", noise" if inside_noise(factor) else ""
    return Cell(f"{factor['mean']:.2f}x", f"{short(factor['low'])} to {short(factor['high'])}{noise}")


def inside_noise(factor: Mapping[str, Any]) -> bool:
    """The interval holds 1, or there is none."""
    return factor["low"] is None or factor["low"] <= 1.0 <= factor["high"]


def sentences(outcome: Mapping[str, Any]) -> list[str]:
    """What the links say of tokens per second and of the time to the target, one sentence each."""
    found = []
    for link in outcome["links"]:
        said = []
        for part in ("speed", "time"):
            factor = link["factors"][part]
            if factor is None:
                said.append(f"{PARTS[part]}: not known")
                continue
            edges = "" if factor["low"] is None else f" ({short(factor['low'])} to {short(factor['high'])})"
            noise = ", which is within the noise" if inside_noise(factor) else ""
            said.append(f"{PARTS[part]} {factor['mean']:.2f}x{edges}{noise}")
        found.append(f"{link['cause']} ({link['arm']} over {link['against']}): {'; '.join(said)}.")
    return found


def markdown(outcome: Mapping[str, Any]) -> str:
    """All tables, for a file beside the page."""
    target = outcome["target"]
    machine = ", ".join(f"{key} {value}" for key, value in outcome["machine"].items())
    under = (f"Means over seeds {', '.join(map(str, outcome['seeds']))} with 95 % intervals (Student's t); target: "
             f"{target['metric']} {target['value']:g}. {machine}.")
    parts = [f"<!-- Made by `perilune ablate`: {outcome['name']}. -->", under,
             markdown_table(*measures_table(outcome))]
    if outcome["links"]:
        parts += ["Factors over the arm before, paired by seed; above 1 is faster, `noise` where the interval holds 1.",
                  markdown_table(*links_table(outcome))]
    if outcome["simulated"]:
        parts += [outcome["simulated"]["text"], markdown_table(outcome["simulated"]["header"],
                                                               outcome["simulated"]["rows"])]
    if outcome["notes"]:
        parts.append("\n".join(f"- {note}" for note in outcome["notes"]))
    return "\n\n".join(parts) + "\n"

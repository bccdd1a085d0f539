"""The outcome as tables, for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tools.ablation.measures import is_share, label
from tools.pages.scale import short
from tools.pages.table import MARK, Cell, Row

Table = tuple[Sequence[str], Sequence[Row]]
PARTS = {"speed": "tokens per second", "length": "shorter responses", "samples": "fewer samples to the target",
         "residual": "residual", "time": "time to the target"}
NOISE = (f"{MARK}: outside the noise, the 95 % interval does not hold 1 (of a difference: 0). Intervals are not "
         "corrected for many comparisons: of twenty differences that are none, about one is outside by chance. An "
         "interval that holds 1 does not show that there is no difference: with few seeds a large one may hide in it.")


def measures_table(outcome: Mapping[str, Any]) -> Table:
    """Measures by arm: the mean, its 95 % interval, and a sign where it differs from the first arm beyond the noise."""
    arms = outcome["arms"]
    names = list(dict.fromkeys(name for arm in arms for name in arm["measures"]))
    rows: list[Row] = []
    for name in names:
        values = [arm["measures"].get(name) for arm in arms]
        if any(value is not None for value in values):
            rows.append([label(name), *(
                _cell(name, value, len(outcome["seeds"]), arm["differences"].get(name, {}).get("outside", False))
                for arm, value in zip(arms, values, strict=True))])
    return ["", *(arm["name"] for arm in arms)], rows


def differences_table(outcome: Mapping[str, Any]) -> Table:
    """Every measure of an arm beside that of the first, paired by seed: a factor, or with a sign a difference."""
    first, *others = outcome["arms"]
    names = list(dict.fromkeys(name for arm in others for name in arm["differences"]))
    rows: list[Row] = [[label(name), *(_difference(name, arm["differences"].get(name), len(outcome["seeds"]))
                                       for arm in others)] for name in names]
    return [f"beside {first['name']}", *(arm["name"] for arm in others)], rows


def _said(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if is_share(name) else short(value)


def _small(edges: str, value: Mapping[str, Any], seeds: int) -> str:
    """Under a mean: its interval, and over how many seeds where it is not all of them."""
    if value["low"] is None:
        return "one seed"
    fewer = f"{value['seeds']} of {seeds} seeds" if value["seeds"] < seeds else ""
    return ", ".join(filter(None, ("" if value["low"] == value["high"] else edges, fewer)))


def _cell(name: str, value: Mapping[str, Any] | None, seeds: int, marked: bool) -> Cell:
    if value is None:
        return Cell("-")
    edges = "" if value["low"] is None else f"{_said(name, value['low'])} to {_said(name, value['high'])}"
    return Cell(_said(name, value["mean"]), _small(edges, value, seeds), marked)


def _difference(name: str, value: Mapping[str, Any] | None, seeds: int) -> Cell:
    if value is None:
        return Cell("-")
    if value["kind"] == "ratio":
        return _factor(value, seeds)
    return _minus(name, value, seeds)


def _minus(name: str, value: Mapping[str, Any] | None, seeds: int) -> Cell:
    """A difference with its sign."""
    if value is None:
        return Cell("-")
    mean, *edges = ("" if one is None else ("+" if one > 0 else "") + _said(name, one + 0.0)  # no "-0"
                    for one in (value["mean"], value["low"], value["high"]))
    return Cell(mean, _small(" to ".join(edges), value, seeds), not inside_noise(value, 0.0))


def links_table(outcome: Mapping[str, Any]) -> Table:
    """Causes by part: factors above 1 are faster; last, the difference of the accuracies at the end."""
    rows: list[Row] = []
    for link in outcome["links"]:
        name = Cell(link["cause"], f"{link['arm']} over {link['against']}")
        rows.append([name, *(_factor(link["factors"][part], len(outcome["seeds"])) for part in PARTS),
                     _minus("accuracy", link["accuracy"], len(outcome["seeds"]))])
    return ["cause", *PARTS.values(), "accuracy at the end"], rows


def _factor(factor: Mapping[str, Any] | None, seeds: int) -> Cell:
    if factor is None:
        return Cell("-")
    return Cell(_times(factor["mean"]) + "x", _small(_edges(factor), factor, seeds), not inside_noise(factor))


def _edges(factor: Mapping[str, Any]) -> str:
    return "" if factor["low"] is None else f"{_times(factor['low'])} to {_times(factor['high'])}"


def _times(value: float) -> str:
    return f"{value:.2f}" if 0.01 <= value < 100 else short(value)


def inside_noise(factor: Mapping[str, Any], none: float = 1.0) -> bool:
    """The interval holds ``none``, that of no difference, or there is no interval."""
    return factor["low"] is None or factor["low"] <= none <= factor["high"]


def switches(outcome: Mapping[str, Any]) -> list[str]:
    """What every link changes, option by option."""
    return [f"{link['arm']} over {link['against']}: " + ("; ".join(
        f"{key} {_option(before)} to {_option(after)}" for key, (before, after) in link["differs"].items())
        or "no option differs") + "." for link in outcome["links"] if not link["whole"]]


def _option(value: Any) -> str:
    return "none" if value is None else f"'{value}'" if value == "" else str(value)


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
            edges = f" ({_edges(factor)})" if _edges(factor) else ""
            noise = ", which is within the noise" if inside_noise(factor) else ""
            said.append(f"{PARTS[part]} {_times(factor['mean'])}x{edges}{noise}")
        found.append(f"{link['cause']} ({link['arm']} over {link['against']}): {'; '.join(said)}.")
    return found

"""Everything that an ablation found, as one tree of plain values; JSON and CSV are written from it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from engine.errors import RunFolderError
from tools.ablation.arms import AblationConfig
from tools.ablation.causes import Link, links
from tools.ablation.cells import Cell
from tools.ablation.differences import differences
from tools.ablation.interval import Interval, interval
from tools.ablation.made import made_of
from tools.ablation.matching import MatchedArm, different, undeclared
from tools.ablation.measures import measure, value_of
from tools.ablation.notes import link_notes, notes_of
from tools.ablation.simulated import Plan, simulated
from tools.story.folder import RunStory


def stories_of(cells: Sequence[Cell]) -> dict[str, RunStory | str]:
    """Name of a cell -> its story, or why there is none."""
    found: dict[str, RunStory | str] = {}
    for cell in cells:
        try:
            cell.require_same_options()
            found[cell.name] = RunStory.read(cell.folder)
        except RunFolderError as error:
            found[cell.name] = str(error)
    return found


def outcome_of(ablation: AblationConfig, cells: Sequence[Cell], stories: Mapping[str, RunStory | str],
               plan: Plan | None = None) -> dict[str, Any]:
    """Put the runs together."""
    names = [arm.name for arm in ablation.chosen]
    cells = sorted(cells, key=lambda cell: names.index(cell.arm.name))  # not as they were run
    told = [_cell(ablation, cell, stories[cell.name]) for cell in cells]
    arms = {cell.arm.name: cell.arm for cell in cells}
    ordered = [arm for arm in ablation.chosen if arm.name in arms]
    # Only whole runs are compared: a cut one had less of everything.
    runs = {arm.name: {one["seed"]: one["measures"] for one in told if one["arm"] == arm.name and one["complete"]}
            for arm in ordered}
    beside = differences(runs, ordered[0].name)
    found = [_link(link, arms) for link in links(ablation.arms, runs)]
    return {
        "name": ablation.name, "about": ablation.about, "match": ablation.match.value, "amount": ablation.amount,
        "seeds": ablation.seeds, "target": {"metric": ablation.target.metric, "value": ablation.target.value},
        "base": ablation.base, "made": made_of(cells, stories),
        "arms": [{"name": arm.name, "overrides": arm.overrides, "against": arm.against, "cause": arm.cause,
                  "measures": _over_seeds(list(runs[arm.name].values())),
                  "differences": {name: one.plain() for name, one in beside[arm.name].items()}} for arm in ordered],
        "cells": told, "links": found,
        "notes": [*undeclared(ablation, list(arms.values())), *link_notes(found),
                  *notes_of(ablation, told, cells, stories)],
        "simulated": simulated(cells, plan) if plan else None,
    }


def _cell(ablation: AblationConfig, cell: Cell, story: RunStory | str) -> dict[str, Any]:
    whole, tries = cell.summary is not None and not isinstance(story, str), cell.tries
    told: dict[str, Any] = {"arm": cell.arm.name, "seed": cell.seed, "complete": whole, "measures": {}, "missing": [],
                            "failed": tries[-1]["failed"] if tries else "", "last_words": "", "tries": tries}
    if isinstance(story, str):
        told["missing"] = [story]
    else:
        told |= {"measures": measure(story, ablation.target, ablation.metrics), "missing": list(story.missing)}
    if not told["complete"]:
        told["last_words"] = cell.last_words
    return told


def _link(link: Link, arms: Mapping[str, MatchedArm]) -> dict[str, Any]:
    before, after = arms[link.against].flat, arms[link.arm].flat
    return {"arm": link.arm, "against": link.against, "cause": link.cause, "whole": link.whole,
            "factors": {name: _plain(factor) for name, factor in link.factors.items()},
            "accuracy": _plain(link.accuracy),
            "differs": {key: [before.get(key), after.get(key)] for key in different(before, after)}}


def _over_seeds(runs: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Measure -> its interval."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: _plain(interval([value for run in runs if (value := value_of(run, name)) is not None]))
            for name in names}


def _plain(value: Interval | None) -> dict[str, Any] | None:
    return None if value is None else asdict(value)


def as_csv(outcome: Mapping[str, Any]) -> str:
    """One row a run, one column a measure; empty where a run has none."""
    names = list(dict.fromkeys(name for cell in outcome["cells"] for name in cell["measures"]))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["arm", "seed", "complete", *names])
    for cell in outcome["cells"]:
        values = ["" if (value := cell["measures"].get(name)) is None else repr(value) for name in names]
        writer.writerow([cell["arm"], cell["seed"], str(cell["complete"]).lower(), *values])
    return file.getvalue()

"""Everything that an ablation found, as one tree of plain values; JSON and CSV are written from it."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from engine.errors import RunFolderError
from tools.ablation.arms import AblationConfig, Match
from tools.ablation.causes import links
from tools.ablation.cells import Cell, Ended
from tools.ablation.interval import Interval, interval
from tools.ablation.matching import undeclared
from tools.ablation.measures import measure
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
               ended: Mapping[str, Ended], machine: Mapping[str, Any], plan: Plan | None = None) -> dict[str, Any]:
    """Put the runs together."""
    told = [_cell(ablation, cell, stories[cell.name], ended.get(cell.name)) for cell in cells]
    arms = {cell.arm.name: cell.arm for cell in cells}
    ordered = [arm for arm in ablation.chosen if arm.name in arms]
    # Only whole runs are compared: a cut one had less of everything.
    runs = {name: {one["seed"]: one["measures"] for one in told if one["arm"] == name and one["complete"]}
            for name in arms}
    return {
        "name": ablation.name, "about": ablation.about, "match": ablation.match.value, "amount": ablation.amount,
        "seeds": ablation.seeds, "target": {"metric": ablation.target.metric, "value": ablation.target.value},
        "base": ablation.base, "machine": dict(machine),
        "arms": [{"name": arm.name, "overrides": arm.overrides, "against": arm.against, "cause": arm.cause,
                  "measures": _over_seeds(list(runs[arm.name].values()))} for arm in ordered],
        "cells": told,
        "links": [{"arm": link.arm, "against": link.against, "cause": link.cause,
                   "factors": {name: _plain(factor) for name, factor in link.factors.items()}}
                  for link in links(ordered, runs)],
        "notes": undeclared(ablation, list(arms.values())) + _notes(ablation, told, cells, stories),
        "simulated": simulated(cells, plan) if plan else None,
    }


def _cell(ablation: AblationConfig, cell: Cell, story: RunStory | str, ended: Ended | None) -> dict[str, Any]:
    whole = cell.summary is not None and not isinstance(story, str)
    told: dict[str, Any] = {"arm": cell.arm.name, "seed": cell.seed, "complete": whole,
                            "measures": {}, "missing": [], "failed": ended.failed if ended else "", "last_words": ""}
    if isinstance(story, str):
        told["missing"] = [story]
    else:
        told |= {"measures": measure(story, ablation.target, ablation.metrics), "missing": list(story.missing)}
    if not told["complete"]:
        told["last_words"] = cell.last_words
    if ended is not None:
        told["load"] = list(ended.load)
    return told


def _over_seeds(runs: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Measure -> its interval; a reason or staleness that a run does not name is 0 there."""
    names = list(dict.fromkeys(name for run in runs for name in run))
    found = {}
    for name in names:
        absent = 0.0 if name.partition("/")[0] in ("masked", "dropped", "staleness") else None
        values = [value for run in runs if (value := run.get(name, absent)) is not None]
        found[name] = _plain(interval(values))
    return found


def _plain(value: Interval | None) -> dict[str, Any] | None:
    return None if value is None else asdict(value)


def _notes(ablation: AblationConfig, told: Sequence[Mapping[str, Any]], cells: Sequence[Cell],
           stories: Mapping[str, RunStory | str]) -> list[str]:
    notes = [f"{one['arm']} seed {one['seed']}: {' '.join(one['missing']) or one['failed']}"
             for one in told if not one["complete"]]
    summaries = [story.summary for story in stories.values() if isinstance(story, RunStory) and story.summary]
    commits = sorted({summary["git_commit"][:9] for summary in summaries})
    if len(commits) > 1:
        notes.append(f"The runs were made by different code: commits {', '.join(commits)}.")
    before = {round(summary["accuracy_before"], 4) for summary in summaries if summary["accuracy_before"] is not None}
    if len(before) > 1:
        notes.append(f"Runs began at different accuracies ({', '.join(map(str, sorted(before)))}): other weights.")
    if ablation.match is Match.seconds:
        notes += [f"{one['arm']} seed {one['seed']} made all its updates before its time was up: raise "
                  "learning.updates in the base." for one in told
                  if one["complete"] and one["measures"]["train_seconds"] < ablation.amount]
    if any(one["measures"].get("seconds_to_target") is None for one in told if one["complete"]):
        missed = [f"{one['arm']} seed {one['seed']}" for one in told
                  if one["complete"] and one["measures"]["seconds_to_target"] is None]
        notes.append(f"{ablation.target.metric} {ablation.target.value:g} was not reached by {', '.join(missed)}.")
    cores = os.cpu_count() or 1
    busy = [f"{one['arm']} seed {one['seed']} ({one['load'][0]:.1f})" for one in told
            if one.get("load", [0.0])[0] > cores]
    if busy:
        notes.append(f"The machine was busy when these began, load average above its {cores} cores: {', '.join(busy)}.")
    if len(ablation.seeds) == 1:
        notes.append("One seed: no interval, and no difference that can be told from noise.")
    resumed = [cell.name for cell in cells if isinstance(story := stories[cell.name], RunStory) and _lives(story) > 1]
    if resumed:
        notes.append(f"Taken up again after a stop, which their times do not show fully: {', '.join(resumed)}.")
    return notes


def _lives(story: RunStory) -> int:
    lineages = {version.partition(".")[0] for row in story.samples[-64:] for version, _ in row["segments"]}
    return max((int(lineage) + 1 for lineage in lineages), default=1)


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

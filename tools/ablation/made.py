"""How the runs of an ablation were made: where, when, by which code and command."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from engine.processor import processor_name
from tools.ablation.cells import Cell
from tools.story.folder import RunStory


def machine() -> dict[str, Any]:
    """Where this process runs, as far as it matters for times."""
    return {"processor": processor_name(), "cores": os.cpu_count()}


def versions(packages: Sequence[str] = ("torch", "numpy", "ray")) -> dict[str, str]:
    """Of Python and of what is installed of these."""
    found = {"Python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # Ray is needed by some arms only
            continue
    return found


def made_of(cells: Sequence[Cell], stories: Mapping[str, RunStory | str]) -> dict[str, Any]:
    """What is written down of all runs that lie there, those of earlier calls included.

    ``seconds`` is the sum over runs, their starts and evaluations included; ``begun`` and ``last_begun`` are in UTC.
    """
    tries = [one for cell in cells for one in cell.tries]
    summaries = [story.summary for story in stories.values() if isinstance(story, RunStory) and story.summary]
    begun = sorted(one["begun"] for one in tries)
    return {
        "machines": _distinct(one["machine"] for one in tries), "versions": _distinct(one["versions"] for one in tries),
        "commands": _distinct(one["command"] for one in tries),
        "commits": _distinct(summary["git_commit"] for summary in summaries),
        "begun": begun[0] if begun else None, "last_begun": begun[-1] if begun else None,
        "seconds": sum(one["seconds"] for one in tries) if tries else None,
    }


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def in_words(made: Mapping[str, Any]) -> str:
    """One sentence for each thing that is known."""
    said = []
    if made["seconds"] is not None:
        said.append(f"The runs took {made['seconds']:.0f} s together, starts and evaluations included; the first began "
                    f"{made['begun']}, the last {made['last_begun']} (UTC).")
    if made["commits"]:
        said.append(f"Commit: {', '.join(commit or 'not known' for commit in made['commits'])}.")
    for name, found in (("Machine", made["machines"]), ("Versions", made["versions"])):
        if found:
            told = [", ".join(f"{key} {value}" for key, value in one.items()) for one in found]
            said.append(f"{name}: {'; or '.join(told)}.")
    said.append(f"Command: {'; '.join(made['commands'])}" if made["commands"] else
                "Nobody wrote down where and when the runs were made.")
    return " ".join(said)

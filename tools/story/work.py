"""Who worked when: the lanes of ``trace.json`` where a run has one, else what its metrics say."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from engine.errors import RunFolderError
from tools.pages.lanes import Lane, Stretch
from tools.story.folder import RunStory


def work_lanes(story: RunStory) -> tuple[list[Lane], str]:
    """Lanes, and a sentence that says where they come from."""
    trace = story.path / "trace.json"
    if trace.exists():
        return trace_lanes(trace), "From trace.json, one lane an actor."
    learner = [Stretch(max(at.seconds - at.value, 0.0), at.seconds, "update")
               for at in story.curves["learn/seconds"]]
    lanes: list[Lane] = [("learner", learner)] if learner else []
    return lanes, "This run left no trace.json: only the learner's updates are known by time."


def trace_lanes(file: Path) -> list[Lane]:
    """Complete events (``ph`` X) of a Chrome trace by thread, seconds since the first one.

    Raises:
        RunFolderError: it is no trace.
    """
    try:
        content = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise RunFolderError(f"{file} is damaged ({error.msg}): remove it, then the metrics serve") from error
    events: list[dict[str, Any]] = content["traceEvents"] if isinstance(content, dict) else content
    names: dict[tuple[Any, Any], str] = {}
    spans: dict[tuple[Any, Any], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        key = (event.get("pid"), event.get("tid"))
        if event.get("ph") == "X":
            spans[key].append(event)
        elif event.get("ph") == "M" and event.get("name") == "thread_name":
            names[key] = str(event["args"]["name"])
    zero = min((event["ts"] for found in spans.values() for event in found), default=0.0)
    return [
        (names.get(key, f"{key[0]}/{key[1]}"), [
            Stretch((event["ts"] - zero) / 1e6, (event["ts"] - zero + event.get("dur", 0.0)) / 1e6, event["name"])
            for event in found
        ])
        for key, found in sorted(spans.items(), key=lambda item: names.get(item[0], str(item[0])))
    ]


def idle_shares(story: RunStory) -> dict[str, float]:
    """Actor -> share of the training time (0..1) in which none of its calls was under way.

    Incarnations of one actor (``generator-0#1``, ``#2``) count as one.
    """
    if story.seconds <= 0:
        return {}
    busy: dict[str, float] = defaultdict(float)
    for name, seconds in (story.summary or {}).get("busy_seconds", {}).items():
        busy[name.partition("#")[0]] += seconds
    if not busy:
        busy["learner"] = story.curves.total(["learn/seconds"])
    return {name: min(max(1.0 - seconds / story.seconds, 0.0), 1.0) for name, seconds in sorted(busy.items())}

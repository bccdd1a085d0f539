"""Who worked when, and who waited for what: by ``trace.json`` where a run has one, else by its metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.trace import read_trace
from tools.pages.lanes import Lane, Stretch
from tools.story.folder import RunStory

_WAIT = "wait: "
_BEGINS = "training begins"
_DRIVING = "answers and questions"


def work_lanes(story: RunStory) -> tuple[list[Lane], str]:
    """Lanes, and a sentence that says where they come from."""
    trace = story.path / "trace.json"
    if trace.exists():
        return trace_lanes(trace), "From trace.json, which ui.perfetto.dev opens too. Thin: waiting."
    learner = [Stretch(max(at.seconds - at.value, 0.0), at.seconds, "update")
               for at in story.curves["learn/seconds"]]
    lanes: list[Lane] = [("learner", learner)] if learner else []
    return lanes, "This run left no trace.json: only the learner's updates are known by time."


def trace_lanes(file: Path) -> list[Lane]:
    """Slices of a trace by lane, in seconds since training began; what came before is left out."""
    return _lanes(read_trace(file))


def _lanes(events: Iterable[Mapping[str, Any]]) -> list[Lane]:
    names: dict[Any, str] = {}
    slices: dict[Any, list[tuple[float, float, str]]] = defaultdict(list)
    zero: float | None = None
    for event in events:
        if event["ph"] == "X":
            slices[event["tid"]].append((event["ts"], event["ts"] + event["dur"], event["name"]))
        elif event["ph"] == "M" and event["name"] == "thread_name":
            names[event["tid"]] = event["args"]["name"]
        elif event["name"] == _BEGINS and zero is None:
            zero = event["ts"]
    if zero is None:
        zero = min((start for found in slices.values() for start, _, _ in found), default=0.0)
    lanes: list[Lane] = []
    for number, found in slices.items():
        lane = names.get(number, str(number))
        # The driver's work has a name for every answer: as many kinds as all others together.
        kept = [Stretch(max(start - zero, 0.0) / 1e6, (stop - zero) / 1e6,
                        _DRIVING if lane == "driver" and not name.startswith(_WAIT) else name.removeprefix(_WAIT),
                        name.startswith(_WAIT)) for start, stop, name in found if stop > zero]
        lanes.append((lane, kept))
    return sorted(lanes, key=lambda one: one[0])


def decode_steps(story: RunStory) -> int:
    """Decoding steps that generators took, all versions together; 0 without a trace.

    A step decodes one token for every slot that is taken, so that their number, unlike their time, is the same on a
    busy machine.
    """
    file, names, steps = story.path / "trace.json", {}, 0
    for event in read_trace(file) if file.exists() else ():
        if event["ph"] == "M" and event["name"] == "thread_name":
            names[event["tid"]] = event["args"]["name"]
        elif event["ph"] == "X" and event["name"] == "decode" and names.get(event["tid"], "").startswith("generator"):
            steps += int(event["args"].get("steps", 0))
    return steps


def idle_shares(story: RunStory) -> dict[str, float]:
    """Actor -> share of the training time (0..1) in which it did not work.

    Incarnations of one actor (``generator-0#1``, ``#2``) count as one. Without a trace, and for a run taken up
    again, whose trace holds the pause as well, only what the summary says of calls under way is known.
    """
    seconds, busy = story.seconds, defaultdict[str, float](float)
    if seconds <= 0:
        return {}
    trace = story.path / "trace.json"
    events = read_trace(trace) if trace.exists() else []
    if events and sum(event["name"] == _BEGINS for event in events) <= 1:
        for name, stretches in _lanes(events):
            busy[_actor(name)] += covered([s for s in stretches if not s.wait], seconds)
    else:
        told = (story.summary or {}).get("busy_seconds") or {"learner": story.curves.total(["learn/seconds"])}
        for name, spent in told.items():
            busy[_actor(name)] += spent
    return {name: min(max(1.0 - spent / seconds, 0.0), 1.0) for name, spent in sorted(busy.items())}


def waits(lanes: Iterable[Lane], most: int = 8) -> list[tuple[str, str, float]]:
    """Actor, what it waited for, seconds; the longest first."""
    times: dict[tuple[str, str], float] = defaultdict(float)
    for name, stretches in lanes:
        for stretch in stretches:
            if stretch.wait:
                times[_actor(name), stretch.kind] += stretch.stop - stretch.start
    ordered = sorted(times.items(), key=lambda item: -item[1])
    return [(actor, reason, seconds) for (actor, reason), seconds in ordered[:most]]


def _actor(name: str) -> str:
    return name.partition("#")[0]


def covered(stretches: Sequence[Stretch], limit: float) -> float:
    """Seconds before ``limit`` that lie in at least one stretch.

    Example:
        >>> covered([Stretch(0, 2, "a"), Stretch(1, 3, "b"), Stretch(5, 9, "a")], 6)
        4.0
    """
    total, end = 0.0, 0.0
    for stretch in sorted(stretches, key=lambda one: one.start):
        stop = min(stretch.stop, limit)
        total += max(stop - max(stretch.start, end), 0.0)
        end = max(end, stop)
    return total

"""Who worked when, and who waited for what: by ``trace.json`` where a run has one, else by its metrics."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from engine.config.cluster import ClusterKind
from engine.trace import FULL, read_trace
from tools.pages.lanes import Lane, Stretch
from tools.story.folder import RunStory

_WAIT = "wait: "
_BEGINS = "training begins"
_DRIVER = "driver"
_DRIVING = "answers and questions"


def work_lanes(story: RunStory) -> tuple[list[Lane], str]:
    """Lanes, and a sentence that says where they come from."""
    trace = story.path / "trace.json"
    if trace.exists():
        inside = " In one process the others' work lies inside the driver's." if _serial(story) else ""
        return trace_lanes(trace), f"From trace.json, which ui.perfetto.dev opens too. Thin: waiting.{inside}"
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
                        _DRIVING if lane == _DRIVER and not name.startswith(_WAIT) else name.removeprefix(_WAIT),
                        name.startswith(_WAIT)) for start, stop, name in found if stop > zero]
        lanes.append((lane, kept))
    return sorted(lanes, key=lambda one: one[0])


def decode_steps(story: RunStory) -> int:
    """Decoding steps that generators took, all versions together; 0 without a trace, or with one that was full.

    A step decodes one token for every slot that is taken, so that their number, unlike their time, is the same on a
    busy machine.
    """
    file, names, steps = story.path / "trace.json", {}, 0
    for event in read_trace(file) if file.exists() else ():
        if event["name"] == FULL:
            return 0
        if event["ph"] == "M" and event["name"] == "thread_name":
            names[event["tid"]] = event["args"]["name"]
        elif event["ph"] == "X" and event["name"] == "decode" and names.get(event["tid"], "").startswith("generator"):
            steps += int(event["args"].get("steps", 0))
    return steps


def idle_shares(story: RunStory) -> dict[str, float]:
    """Actor -> share of the training time (0..1) in which it did not work.

    Incarnations of one actor (``generator-0#1``, ``#2``) count as one. In one process actors work while the driver
    waits for their answers, which is not the driver's work. Without a trace, with one that was full, and for a run
    taken up again, whose trace holds the pause as well, only what the summary says of calls under way is known.
    """
    seconds, busy = story.seconds, defaultdict[str, float](float)
    if seconds <= 0:
        return {}
    trace = story.path / "trace.json"
    events = read_trace(trace) if trace.exists() else []
    names = Counter(event["name"] for event in events)
    if events and names[_BEGINS] <= 1 and not names[FULL]:
        lanes = _lanes(events)
        if story.summary is None:
            # The last moments of a live run, or of one that was killed, are not in the file.
            seconds = min(seconds, max((one.stop for _, stretches in lanes for one in stretches), default=seconds))
        work = {name: [one for one in stretches if not one.wait] for name, stretches in lanes}
        for name, stretches in work.items():
            busy[_actor(name)] += covered(stretches, seconds)
        if _serial(story) and _DRIVER in work:
            others = chain.from_iterable(stretches for name, stretches in work.items() if name != _DRIVER)
            busy[_DRIVER] = covered([*chain.from_iterable(work.values())], seconds) - covered([*others], seconds)
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


def _serial(story: RunStory) -> bool:
    return bool(story.config["cluster"]["kind"] == ClusterKind.serial.value)


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

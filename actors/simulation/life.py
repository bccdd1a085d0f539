"""The newest life of a run as its trace tells it, sorted by who did what."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.tracing import BEGINS, DRIVER, VERSION, role_of
from engine.records.span import Span

ANSWERS = ("generator: advance", "evaluator: advance", "judge: judge", "learner: update")
"""What the driver does again and again."""


@dataclass(slots=True)
class Life:
    """The newest life of a run; seconds since its training began."""

    work: defaultdict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))
    """Actor -> what it did."""
    answers: defaultdict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))
    """Role -> what the driver did with its answers."""
    checkpoints: list[Span] = field(default_factory=list)
    commits: list[Span] = field(default_factory=list)
    staleness: Counter[int] = field(default_factory=Counter)
    """Versions -> tokens that carried loss."""
    first_look: list[Span] = field(default_factory=list)
    """What evaluators did before training began, in the first life."""

    def of(self, role: str, kind: str = "") -> list[Span]:
        """Work of all actors of a role."""
        return [one for actor, spans in self.work.items() if role_of(actor) == role
                for one in spans if one.kind == kind or not kind]


def read_life(events: Sequence[Mapping[str, Any]]) -> Life:
    """Sort the events of a trace."""
    begun = [e["ts"] for e in events if e["ph"] == "i" and e["name"] == BEGINS]
    first, begins = min(begun, default=0), max(begun, default=0)
    names: dict[int, str] = {}
    life = Life()
    for event in events:
        if event["ph"] == "M" and event["name"] == "thread_name":
            names[event["tid"]] = event["args"]["name"]
        if event["ph"] not in "Xi":
            continue
        start = (event["ts"] - begins) / 1e6
        one = Span(event["name"], start, start + event.get("dur", 0) / 1e6, event.get("args", {}))
        actor = names.get(event["tid"], "")
        if event["ts"] >= begins:
            _sort(life, actor, one, event.get("args", {}).get("staleness", {}))
        elif event["ts"] < first and role_of(actor) == "evaluator":
            life.first_look.append(one)
    return life


def _sort(life: Life, actor: str, one: Span, ages: Mapping[str, int]) -> None:
    if one.kind.startswith(VERSION):
        if one.amounts["committed"]:
            life.commits.append(one)
            life.staleness.update({int(age): count for age, count in ages.items()})
    elif actor == DRIVER:
        if one.kind in ANSWERS:
            life.answers[one.kind.partition(":")[0]].append(one)
        elif one.kind == "checkpoint":
            life.checkpoints.append(one)
    elif not one.kind.startswith("wait"):
        life.work[actor].append(one)


class Busy:
    """Seconds of work until any moment, of some spans together."""

    def __init__(self, spans: Sequence[Span]) -> None:
        merged: list[list[float]] = []
        for start, stop in sorted((one.start, one.stop) for one in spans):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], stop)
            else:
                merged.append([start, stop])
        self._times = np.array(list(chain.from_iterable(merged)) or [0.0])
        lasted = [part for start, stop in merged for part in (0.0, stop - start)]
        self._until = np.cumsum(lasted) if lasted else np.zeros(1)

    def within(self, start: Any, stop: Any) -> NDArray[np.float64]:
        """Seconds of work between two moments, or many.

        Example:
            >>> float(Busy([Span("a", 0.0, 2.0), Span("b", 3.0, 9.0)]).within(1.0, 4.0))
            2.0
        """
        until = np.interp([start, stop], self._times, self._until)
        found: NDArray[np.float64] = until[1] - until[0]
        return found

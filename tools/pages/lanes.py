"""Who worked when: one lane an actor, one bar a stretch of work, a thin one where it waited."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tools.pages.scale import Scale, short, ticks
from tools.pages.stacks import stack_key
from tools.pages.svg import SERIES, drawing, path, shortened, tag, text

_WIDTH, _ROW, _LABEL, _RIGHT = 800, 28, 120, 8
_TOUCH = 0.75
"""Stretches of one kind that are nearer than this, in pixels, are drawn as one."""
OTHER, WAITS = "other work", "waits"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Work of one kind, in seconds since training began; or a wait, which says what for."""

    start: float
    stop: float
    kind: str
    wait: bool = False


Lane = tuple[str, Sequence[Stretch]]


def lanes(rows: Sequence[Lane], title: str) -> str:
    """Draw lanes over a common time axis, with a key of kinds: the longest ones, then all others as one."""
    everything = [stretch for _, stretches in rows for stretch in stretches]
    if not everything:
        return drawing(_WIDTH, 40, title, text("no work was recorded", 0, 24))
    times: defaultdict[str, float] = defaultdict(float)
    for stretch in everything:
        if not stretch.wait:
            times[stretch.kind] += stretch.stop - stretch.start
    longest = sorted(times, key=lambda kind: -times[kind])
    kinds = longest if len(longest) < SERIES else [*longest[: SERIES - 1], OTHER]
    axis = Scale(0.0, max(max(stretch.stop for stretch in everything), 1e-6), _LABEL, _WIDTH - _RIGHT)
    bottom = _ROW * len(rows) + 6
    parts = []
    for value in ticks(axis.low, axis.high, 8):
        parts.append(path([(axis(value), 0), (axis(value), bottom)], class_="axis"))
        parts.append(text(f"{short(value)} s", axis(value), bottom + 16, text_anchor="middle"))
    for i, (name, stretches) in enumerate(rows):
        parts.append(text(shortened(name, 17), 0, _ROW * i + 20, class_="ink"))
        parts.append(_bars(stretches, kinds, _ROW * i + 5, axis))
    key = [*kinds, WAITS] if any(stretch.wait for stretch in everything) else kinds
    return drawing(_WIDTH, bottom + 22, title, "".join(parts)) + stack_key(key, waits=WAITS)


def _bars(stretches: Sequence[Stretch], kinds: Sequence[str], y: float, axis: Scale) -> str:
    groups: dict[tuple[str, bool], list[Stretch]] = {}
    for stretch in stretches:
        kind = stretch.kind if stretch.wait or stretch.kind in kinds else OTHER
        groups.setdefault((kind, stretch.wait), []).append(stretch)
    parts = []
    for (kind, wait), found in sorted(groups.items(), key=lambda group: not group[0][1]):
        colour = f"wait f{SERIES - 1}" if wait else f"f{kinds.index(kind) % SERIES}"
        top, tall = (y + 8, 4) if wait else (y, 20)
        bars = "".join(tag("rect", x=left, y=top, width=max(right - left, 0.4), height=tall)
                       for left, right in _merged(found, axis))
        parts.append(tag("g", tag("title", f"waits for {kind}" if wait else kind) + bars, class_=colour))
    return "".join(parts)


def _merged(stretches: Sequence[Stretch], axis: Scale) -> list[tuple[float, float]]:
    places: list[tuple[float, float]] = []
    for stretch in sorted(stretches, key=lambda one: one.start):
        left, right = axis(stretch.start), axis(stretch.stop)
        if places and left - places[-1][1] < _TOUCH:
            places[-1] = (places[-1][0], max(places[-1][1], right))
        else:
            places.append((left, right))
    return places

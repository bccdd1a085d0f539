"""Who worked when: one lane an actor, one bar a stretch of work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tools.pages.scale import Scale, short, ticks
from tools.pages.stacks import stack_key
from tools.pages.svg import SERIES, drawing, path, shortened, tag, text

_WIDTH, _ROW, _LABEL, _RIGHT = 1140, 30, 150, 8
_TOUCH = 0.75
"""Stretches of one kind that are nearer than this, in pixels, are drawn as one."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Work of one kind, in seconds since the first one began."""

    start: float
    stop: float
    kind: str


Lane = tuple[str, Sequence[Stretch]]


def lanes(rows: Sequence[Lane], title: str) -> str:
    """Draw lanes over a common time axis, with a key of kinds."""
    everything = [stretch for _, stretches in rows for stretch in stretches]
    if not everything:
        return drawing(_WIDTH, 40, title, text("no work was recorded", 0, 24))
    kinds = sorted({stretch.kind for stretch in everything})
    axis = Scale(0.0, max(max(stretch.stop for stretch in everything), 1e-6), _LABEL, _WIDTH - _RIGHT)
    bottom = _ROW * len(rows) + 6
    parts = []
    for value in ticks(axis.low, axis.high, 10):
        parts.append(path([(axis(value), 0), (axis(value), bottom)], class_="axis"))
        parts.append(text(f"{short(value)} s", axis(value), bottom + 16, text_anchor="middle"))
    for i, (name, stretches) in enumerate(rows):
        y = _ROW * i + 5
        parts.append(text(shortened(name, 20), 0, y + 15, class_="ink"))
        for kind in kinds:
            colour = kinds.index(kind) % SERIES
            for left, right in _merged([s for s in stretches if s.kind == kind], axis):
                parts.append(tag("rect", tag("title", kind), x=left, y=y, width=max(right - left, 0.4), height=20,
                                 class_=f"f{colour}"))
    return drawing(_WIDTH, bottom + 22, title, "".join(parts)) + stack_key(kinds)


def _merged(stretches: Sequence[Stretch], axis: Scale) -> list[tuple[float, float]]:
    places: list[tuple[float, float]] = []
    for stretch in sorted(stretches, key=lambda one: one.start):
        left, right = axis(stretch.start), axis(stretch.stop)
        if places and left - places[-1][1] < _TOUCH:
            places[-1] = (places[-1][0], max(places[-1][1], right))
        else:
            places.append((left, right))
    return places

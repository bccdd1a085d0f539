"""Factors with their intervals, one a row, around the line of no difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tools.pages.scale import Scale
from tools.pages.svg import drawing, path, shortened, tag, text

_WIDTH, _ROW, _LABEL, _VALUE, _TOP = 560, 34, 190, 140, 10
_TICKS = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Whisker:
    """A factor (1: no difference) and its interval; None where one seed gives none."""

    name: str
    mean: float
    low: float | None
    high: float | None
    colour: int = 0


def whiskers(rows: Sequence[Whisker], title: str) -> str:
    """One dot and whisker a row, on a logarithmic axis; a whisker may run out of the drawing."""
    reach = max([abs(math.log(row.mean)) for row in rows] + [math.log(1.3)])
    edges = [abs(math.log(edge)) for row in rows for edge in (row.low, row.high) if edge]
    reach = min(max([reach, *edges]), 2.5 * reach) * 1.08
    axis = Scale(-reach, reach, _LABEL, _WIDTH - _VALUE)
    bottom = _TOP + _ROW * len(rows)
    parts = []
    places = [-math.inf]
    for value in (1.0, *_TICKS):
        place = axis(math.log(value))
        if abs(math.log(value)) <= reach and all(abs(place - other) > 42 for other in places):
            places.append(place)
            parts.append(path([(place, _TOP), (place, bottom)], class_="mark" if value == 1.0 else "axis"))
            parts.append(text(f"{value:g}x", place, bottom + 16, text_anchor="middle"))
    parts += [_row(row, _TOP + _ROW * (i + 0.5), axis) for i, row in enumerate(rows)]
    return drawing(_WIDTH, bottom + 22, title, "".join(parts))


def _row(row: Whisker, y: float, axis: Scale) -> str:
    colour, said = row.colour, f"{row.mean:.2f}x"
    parts = [text(shortened(row.name, 28), 0, y + 4, class_="ink")]
    if row.low is not None and row.high is not None:
        ends = [min(max(axis(math.log(edge)), axis.start), axis.stop) for edge in (row.low, row.high)]
        parts.append(path([(ends[0], y), (ends[1], y)], class_=f"whisker s{colour}"))
        said += f"  {row.low:.2f} to {row.high:.2f}"
    parts.append(tag("circle", cx=axis(math.log(row.mean)), cy=y, r=4.5, class_=f"f{colour}"))
    parts.append(text(said, axis.stop + 10, y + 4))
    return "".join(parts)

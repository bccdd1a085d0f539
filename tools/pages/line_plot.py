"""Lines with bands over one pair of axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tools.pages.scale import Scale, short, span, ticks
from tools.pages.svg import SERIES, drawing, number, path, tag, text

WIDTH, HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 8, 40
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """A series: its points in order of x, and perhaps a band (x, low, high) around them."""

    name: str
    points: Points
    band: Sequence[tuple[float, float, float]] = ()
    dots: bool = False
    """Mark every point: they are few, and measured one by one."""


def line_plot(lines: Sequence[Line], x_label: str, y_label: str, *, floor: float | None = None,
              ceiling: float | None = None, mark: float | None = None) -> str:
    """Draw the lines; colours and dashes by position.

    Args:
        lines: what is not finite is left out of them.
        x_label: under the axis, with its unit.
        y_label: what a reader is told who does not see it.
        floor: least y, unless a point lies below; None: that of the data.
        ceiling: largest y; None: that of the data.
        mark: a y to draw a dashed line at.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if floor is not None:
        floor = min([floor, *filter(math.isfinite, ys)])
    ys += [edge for line in lines for _, low, high in line.band for edge in (low, high)]
    if not ys:
        return drawing(WIDTH, 60, y_label, text("nothing was recorded", WIDTH / 2, 34, text_anchor="middle"))
    x_scale = Scale(*span(xs, floor=min(0.0, *xs)), _LEFT, WIDTH - _RIGHT)
    y_scale = Scale(*span([*ys, *([] if mark is None else [mark])], floor, ceiling), HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(x_scale, y_scale, x_label)]
    if mark is not None:
        parts.append(path([(_LEFT, y_scale(mark)), (WIDTH - _RIGHT, y_scale(mark))], class_="mark"))
    parts += [_band(line, i % SERIES, x_scale, y_scale) for i, line in enumerate(lines) if line.band]
    parts += [_line(line, i % SERIES, x_scale, y_scale) for i, line in enumerate(lines) if line.points]
    return drawing(WIDTH, HEIGHT, f"{y_label} against {x_label}", "".join(parts))


def _axes(x_scale: Scale, y_scale: Scale, x_label: str) -> str:
    parts = []
    for value in ticks(y_scale.low, y_scale.high):
        y = y_scale(value)
        parts.append(path([(_LEFT, y), (WIDTH - _RIGHT, y)], class_="axis"))
        parts.append(text(short(value), _LEFT - 8, y + 4, text_anchor="end"))
    for value in ticks(x_scale.low, x_scale.high):
        parts.append(text(short(value), x_scale(value), HEIGHT - _BOTTOM + 17, text_anchor="middle"))
    parts.append(text(x_label, (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 4, text_anchor="middle"))
    return "".join(parts)


def _line(line: Line, colour: int, x_scale: Scale, y_scale: Scale) -> str:
    places = [(x_scale(x), y_scale(y)) for x, y in line.points if math.isfinite(y)]
    if not places:
        return ""
    drawn = path(places, class_=f"line s{colour}")
    if line.dots or len(places) == 1:
        drawn += "".join(tag("circle", cx=x, cy=y, r=3, class_=f"f{colour}") for x, y in places)
    return drawn


def _band(line: Line, colour: int, x_scale: Scale, y_scale: Scale) -> str:
    inside = [(x, max(low, y_scale.low), min(high, y_scale.high)) for x, low, high in line.band
              if math.isfinite(low) and math.isfinite(high)]
    edge = [(x_scale(x), y_scale(high)) for x, _, high in inside]
    edge += [(x_scale(x), y_scale(low)) for x, low, _ in reversed(inside)]
    if not edge:
        return ""
    d = "M" + "L".join(f"{number(x)} {number(y)}" for x, y in edge) + "Z"
    return tag("path", d=d, class_=f"band f{colour}")

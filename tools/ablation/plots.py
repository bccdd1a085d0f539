"""Reward and accuracy of every arm against samples and time, with bands over seeds."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from tools.ablation.cells import Cell
from tools.ablation.measures import samples_an_update
from tools.pages.line_plot import Line, line_plot
from tools.pages.page import figure, grid
from tools.story.curves import Point
from tools.story.folder import RunStory

SMOOTHED = 5
"""Updates that a point of a reward curve is the mean of."""
_GRID = 80
Curve = list[tuple[float, float]]


def arm_plots(cells: Sequence[Cell], stories: Mapping[str, RunStory | str], arms: Sequence[str],
              mark: tuple[str, float]) -> str:
    """Four plots; ``arms`` are names in the order of their colours, ``mark`` the metric and value to be reached."""
    by_arm: dict[str, list[RunStory]] = {name: [] for name in arms}
    for cell in cells:
        story = stories[cell.name]
        if isinstance(story, RunStory):
            by_arm[cell.arm.name].append(story)
    at = mark[1] if mark[0] == "heldout/accuracy" else None
    figures = []
    for title, read, level in (("Held-out accuracy", _accuracy, at), ("Reward", _reward, None)):
        for against, place in (("samples", _samples), ("seconds of training", _seconds)):
            lines = [_line(name, [place(story, read(story)) for story in found], dots=read is _accuracy)
                     for name, found in by_arm.items()]
            caption = "greedy answers" if read is _accuracy else f"of sampled answers, mean of {SMOOTHED} updates"
            figures.append(figure(title, f"against {against}; {caption}. Band: least to largest over seeds.",
                                  line_plot(lines, against, title, floor=0.0, mark=level)))
    return grid(figures)


def _accuracy(story: RunStory) -> list[Point]:
    return story.curves.at_commit("heldout/accuracy")


def _reward(story: RunStory) -> list[Point]:
    points = story.curves["rollout/reward_mean"]
    values = [point.value for point in points]
    return [Point(point.update, point.seconds, fmean(values[max(0, i + 1 - SMOOTHED): i + 1]))
            for i, point in enumerate(points)]


def _samples(story: RunStory, points: Sequence[Point]) -> Curve:
    each = samples_an_update(story)
    return [(point.update * each, point.value) for point in points]


def _seconds(_: RunStory, points: Sequence[Point]) -> Curve:
    return [(point.seconds, point.value) for point in points]


def _line(name: str, curves: Sequence[Curve], dots: bool) -> Line:
    """Mean and range over seeds, where all of them have values."""
    curves = [curve for curve in curves if curve]
    if not curves:
        return Line(name, [])
    xs = sorted({x for curve in curves for x, _ in curve})
    common = [x for x in xs if max(c[0][0] for c in curves) <= x <= min(c[-1][0] for c in curves)]
    same = all([x for x, _ in curve] == xs for curve in curves)
    if not same and len(common) > _GRID:
        common = [common[0] + (common[-1] - common[0]) * i / (_GRID - 1) for i in range(_GRID)]
    values = [[_at(curve)(x) for curve in curves] for x in common]
    points = [(x, fmean(row)) for x, row in zip(common, values, strict=True)]
    band = [(x, min(row), max(row)) for x, row in zip(common, values, strict=True)] if len(curves) > 1 else []
    return Line(name, points, band, dots=dots and same)


def _at(curve: Curve) -> Callable[[float], float]:
    """A curve as a function, straight between its points."""
    xs = [x for x, _ in curve]

    def value(x: float) -> float:
        right = min(max(bisect_right(xs, x), 1), len(curve) - 1)
        (x0, y0), (x1, y1) = curve[max(right - 1, 0)], curve[right]
        return y0 if x1 == x0 else y0 + (y1 - y0) * min(max((x - x0) / (x1 - x0), 0.0), 1.0)

    return value

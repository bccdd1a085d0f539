"""What was generated against what was trained: the page's section about selection bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.replay.selection_bias import LEVEL
from tools.pages.line_plot import Line, line_plot
from tools.pages.page import bullets, figure, grid, legend, section
from tools.pages.scale import short
from tools.pages.stacks import pairs, stack_key
from tools.story.folder import RunStory

_SIDES = ("generated", "trained")
_SHOWN = {"length_tokens": ("Lengths of groups", "tokens"), "success": ("Success rates", "share judged correct"),
          "age_versions": ("Ages", "versions from the oldest token to the moment a group left")}
_DISTANCES = {"selection/length_distance": "lengths", "selection/success_distance": "success rates",
              "selection/age_distance": "ages"}
_MOST_KINDS = 8


def selection(story: RunStory) -> str:
    """The section; distributions are those of the last window, so a run without a summary has distances alone."""
    told: Mapping[str, Any] = (story.summary or {}).get("selection", {})
    shapes = told.get("distributions", {})
    lines = [Line(name, [(point.update, point.value) for point in story.curves[metric]])
             for metric, name in _DISTANCES.items()]
    distances = figure("Distance", "of trained from generated groups, over the last window.",
                       line_plot([line for line in lines if line.points], "update", "Distance", floor=0.0)
                       + legend([line.name for line in lines if line.points]))
    drawn = [_histogram(shapes[name], *words) for name, words in _SHOWN.items()
             if name in shapes and shapes[name]["generated"]]
    if shapes.get("kinds"):
        drawn.append(_kinds(shapes["kinds"]))
    return section("Generated against trained", _state(story, told), bullets(told.get("findings", ())),
                   grid([*drawn, distances]), stack_key(_SIDES) if drawn else "")


def _state(story: RunStory, told: Mapping[str, Any]) -> str:
    alarms = story.curves["selection/alarm"]
    if not alarms:
        return "No group had left when the last line was written."
    on = "on" if alarms[-1].value else "off"
    looks = sum(point.value > 0 for point in alarms)
    where = "" if told else " Histograms come with the summary, which is not there."
    return (f"The alarm is {on} at update {alarms[-1].update}; it was on at {looks} of {len(alarms)} looks, each at "
            f"level {LEVEL}. Ages raise none.{where}")


def _shares(counts: Sequence[float]) -> list[float]:
    total = max(sum(counts), 1)
    return [count / total for count in counts]


def _histogram(shape: Mapping[str, Any], title: str, unit: str) -> str:
    every, kept = _shares(shape["generated"]), _shares(shape["trained"])
    kept += [0.0] * (len(every) - len(kept))
    chance = "too few to test" if shape["chance"] is None else f"by chance below {shape['chance']:.2f}"
    rows = [(short(k * shape["width"]), ours, theirs) for k, (ours, theirs) in enumerate(zip(every, kept, strict=True))]
    caption = (f"shares of {sum(shape['generated'])} generated and {sum(shape['trained'])} trained groups; distance "
               f"{shape['distance']:.2f}, {chance}.")
    return figure(title, caption, pairs(rows, _SIDES, title, unit))


def _kinds(counts: Mapping[str, Mapping[str, int]]) -> str:
    """The labels that lost most; a group has a kind and may have tags."""
    chosen = sorted(counts, key=lambda label: counts[label]["trained"] / counts[label]["generated"])[:_MOST_KINDS]
    rows = [(label, counts[label]["generated"], counts[label]["trained"]) for label in chosen]
    rest = f"; the {_MOST_KINDS} of {len(counts)} of which fewest were trained" if len(counts) > _MOST_KINDS else ""
    return figure("Kinds and tags", f"groups{rest}.", pairs(rows, _SIDES, "Kinds and tags", "kind or tag"))

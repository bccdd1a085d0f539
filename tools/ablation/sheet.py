"""The outcome as one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tools.ablation.cells import Cell
from tools.ablation.made import in_words
from tools.ablation.plots import arm_plots
from tools.ablation.tables import (
    NOISE,
    PARTS,
    differences_table,
    inside_noise,
    links_table,
    measures_table,
    switches,
)
from tools.pages.page import bullets, figure, grid, legend, section, sheet
from tools.pages.stacks import stacks
from tools.pages.svg import tag
from tools.pages.table import MARK, html_table
from tools.pages.whiskers import Whisker, whiskers
from tools.story.folder import RunStory

_MATCHED = {"updates": "the same updates", "samples": "the same samples", "seconds": "the same time"}


def ablation_sheet(outcome: Mapping[str, Any], cells: Sequence[Cell], stories: Mapping[str, RunStory | str]) -> str:
    """The whole page."""
    arms = [arm["name"] for arm in outcome["arms"]]
    done = sum(cell["complete"] for cell in outcome["cells"])
    target = outcome["target"]
    under = (f"{len(arms)} arms, seeds {', '.join(map(str, outcome['seeds']))}, each given "
             f"{_MATCHED[outcome['match']]}; {done} of {len(outcome['cells'])} runs are complete.")
    body = [tag("p", escape(outcome["about"])) if outcome["about"] else "", legend(arms),
            bullets(outcome["notes"]),
            section("Learning", f"The dashed level is the target, {target['metric']} {target['value']:g}.",
                    arm_plots(cells, stories, arms, (target["metric"], target["value"])))]
    if outcome["links"]:
        body.append(_causes(outcome))
    if outcome["simulated"]:
        body.append(section("Separate devices, simulated", outcome["simulated"]["text"],
                            html_table(outcome["simulated"]["header"], outcome["simulated"]["rows"]),
                            bullets(outcome["simulated"]["assumptions"])))
    body += [section("Measures", "Mean over seeds, under it the 95 % interval (Student's t). Shares of tokens are of "
                     f"all that were generated. {MARK} here: the difference to {arms[0]}, paired by seed, is outside "
                     "the noise.",
                     html_table(*measures_table(outcome))),
             section(f"Beside {arms[0]}", f"Paired by seed: factors (x), and differences where they have no x. {NOISE}",
                     html_table(*differences_table(outcome))),
             _tokens(outcome), _failures(outcome), _made(outcome)]
    return sheet(f"Ablation: {outcome['name']}", under, body)


def _causes(outcome: Mapping[str, Any]) -> str:
    figures = []
    for part, name in PARTS.items():
        rows = [Whisker(link["cause"], f["mean"], f["low"], f["high"], 7 if inside_noise(f) else 0)
                for link in outcome["links"] if (f := link["factors"][part]) is not None]
        if rows and part in ("speed", "time"):
            figures.append(figure(name.capitalize(), "factor over the arm before; grey: within the noise.",
                                  whiskers(rows, name)))
    text = ("One step at a time. Faster to the target = tokens per second x shorter responses x fewer samples x a "
            "residual; factors above 1 are faster, each with its 95 % interval, paired by seed, all over those seeds "
            "that reached the target in both arms, if any did. The accuracy is a difference, and part of no product. "
            + NOISE)
    return section("What the speed-up is made of", text, grid(figures), html_table(*links_table(outcome)),
                   tag("p", "What each step changes:"), bullets(switches(outcome)))


def _tokens(outcome: Mapping[str, Any]) -> str:
    staleness, tokens = [], []
    for arm in outcome["arms"]:
        means = {name: value["mean"] for name, value in arm["measures"].items() if value}
        ages = sorted((name.partition("/")[2] for name in means if name.startswith("staleness/")), key=int)
        if ages:
            staleness.append((arm["name"], {f"{age} versions": means[f"staleness/{age}"] for age in ages}))
        lost = {name.replace("/", ": ").replace("_", " "): value for name, value in means.items()
                if name.startswith(("masked/", "dropped/"))}
        if means:
            tokens.append((arm["name"], {"carried loss": max(1.0 - sum(lost.values()), 0.0), **lost}))
    figures = [figure(title, caption, stacks(rows, title)) for title, caption, rows in (
        ("Staleness", "of tokens that carried loss, in versions.", staleness),
        ("Tokens", "that were generated, by what became of them.", tokens)) if rows]
    return section("Tokens", "", grid(figures)) if figures else ""


def _failures(outcome: Mapping[str, Any]) -> str:
    failed = [cell for cell in outcome["cells"] if not cell["complete"]]
    parts = []
    for cell in failed:
        parts.append(tag("p", tag("b", escape(f"{cell['arm']} seed {cell['seed']}")) + " "
                         + escape(" ".join([cell["failed"], *cell["missing"]]).strip())))
        if cell["last_words"]:
            parts.append(tag("pre", escape(cell["last_words"])))
    return section("Runs that are not complete", "Their curves are drawn as far as they go; they are part of no mean.",
                   *parts) if failed else ""


def _made(outcome: Mapping[str, Any]) -> str:
    rows = [[arm["name"], " ".join(arm["overrides"]) or "-"] for arm in outcome["arms"]]
    text = f"Every arm starts from: {' '.join(outcome['base'])}. {in_words(outcome['made'])}"
    return section("How it was made", text,
                   html_table(["arm", "its own options"], rows, words=True))

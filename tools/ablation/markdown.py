"""The outcome as one file of Markdown, beside the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tools.ablation.made import in_words
from tools.ablation.tables import NOISE, differences_table, links_table, measures_table, switches
from tools.pages.table import MARK, markdown_table


def markdown(outcome: Mapping[str, Any]) -> str:
    """All tables, and the notes."""
    target, first = outcome["target"], outcome["arms"][0]["name"]
    under = (f"Means over seeds {', '.join(map(str, outcome['seeds']))} with 95 % intervals (Student's t); target: "
             f"{target['metric']} {target['value']:g}. {NOISE}")
    parts = [f"<!-- Made by `perilune ablate`: {outcome['name']}. -->", under, in_words(outcome["made"]),
             f"{MARK} in the next table: the difference to {first}, paired by seed, is outside the noise.",
             markdown_table(*measures_table(outcome)),
             f"Beside {first}, paired by seed: factors (x), and differences where they have no x.",
             markdown_table(*differences_table(outcome))]
    if outcome["links"]:
        parts += ["Factors over the arm before, paired by seed; above 1 is faster. The accuracy is a difference.",
                  markdown_table(*links_table(outcome)), _list(switches(outcome))]
    if outcome["simulated"]:
        parts += [outcome["simulated"]["text"], markdown_table(outcome["simulated"]["header"],
                                                               outcome["simulated"]["rows"]),
                  _list(outcome["simulated"]["assumptions"])]
    parts.append(_list(outcome["notes"]))
    return "\n\n".join(filter(None, parts)) + "\n"


def _list(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)

"""What a reader has to know before the numbers: runs that are missing, do not belong together, or were disturbed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.ablation.arms import AblationConfig, Match
from tools.ablation.cells import Cell
from tools.ablation.measures import BRACKET
from tools.story.folder import RunStory

FOREIGN = 0.1
"""Share of all cores that others may use before a note says so."""
_WIDE = 0.1
"""Of the updates to the target, that two evaluations around it may lie apart; nothing is finer than one update."""
Told = Sequence[Mapping[str, Any]]


def notes_of(ablation: AblationConfig, told: Told, cells: Sequence[Cell],
             stories: Mapping[str, RunStory | str]) -> list[str]:
    """One sentence each; ``told`` holds the cells as the outcome does."""
    notes = [f"{_name(one)}: {' '.join(one['missing']) or one['failed']}" for one in told if not one["complete"]]
    notes += _belonging([story.summary for story in stories.values() if isinstance(story, RunStory) and story.summary])
    notes += _disturbed(told)
    complete = [one for one in told if one["complete"]]
    if ablation.match is Match.seconds:
        notes += [f"{_name(one)} made all its updates before its time was up: raise learning.updates in the base."
                  for one in complete if one["measures"]["train_seconds"] < ablation.amount]
    notes += _target(ablation, complete)
    if len(ablation.seeds) == 1:
        notes.append("One seed: no interval, and no difference that can be told from noise.")
    resumed = [cell.name for cell in cells if isinstance(story := stories[cell.name], RunStory) and _lives(story) > 1]
    if resumed:
        notes.append(f"Taken up again after a stop, which their times do not show fully: {', '.join(resumed)}.")
    return notes


def link_notes(links: Sequence[Mapping[str, Any]]) -> list[str]:
    """Neighbours that differ in more than one option: then a factor is that of all of them together."""
    return [f"{link['arm']} over {link['against']} changes {len(link['differs'])} options together: "
            f"{', '.join(link['differs'])}." for link in links if len(link["differs"]) > 1 and not link["whole"]]


def _name(one: Mapping[str, Any]) -> str:
    return f"{one['arm']} seed {one['seed']}"


def _belonging(summaries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    commits = sorted({_short(summary["git_commit"]) for summary in summaries})
    if len(commits) > 1:
        yield f"The runs were made by different code: commits {', '.join(commit or 'not known' for commit in commits)}."
    elif any("+" in commit for commit in commits):
        yield f"The runs were made by code that no commit holds: {commits[0]}. It may have changed between them."
    before = {round(summary["accuracy_before"], 4) for summary in summaries if summary["accuracy_before"] is not None}
    if len(before) > 1:
        yield f"Runs began at different accuracies ({', '.join(map(str, sorted(before)))}): other weights."
    if len({digest for summary in summaries if (digest := summary.get("prompts_digest"))}) > 1:
        yield "Runs asked different questions: the files or the function that prompts come from changed between them."


def _short(commit: str) -> str:
    name, plus, changes = commit.partition("+")
    return name[:9] + plus + changes


def _disturbed(told: Told) -> Iterator[str]:
    tries = [(one, made) for one in told for made in one["tries"]]
    for key, name in (("machine", "on different machines"), ("versions", "with different versions")):
        if any(made[key] != tries[0][1][key] for _, made in tries):
            yield f"Runs were made {name}; the file ablation.json says which."
    busy = [f"{_name(one)} ({made['foreign']:.0%})" for one, made in tries
            if made["foreign"] is not None and made["foreign"] > FOREIGN]
    if busy:
        yield f"Others used more than {FOREIGN:.0%} of the machine's cores during these runs: {', '.join(busy)}."


def _target(ablation: AblationConfig, complete: Told) -> Iterator[str]:
    said = f"{ablation.target.metric} {ablation.target.value:g}"
    missed = [_name(one) for one in complete if one["measures"].get("seconds_to_target") is None]
    if missed:
        yield f"{said} was not reached by {', '.join(missed)}."
    wide = []
    for one in complete:
        after, by = (one["measures"].get(name) for name in BRACKET)
        if after is not None and by is not None and by - after > max(_WIDE * one["measures"]["updates_to_target"], 1.0):
            wide.append(f"{_name(one)} (updates {after:.0f} to {by:.0f})")
    if wide:
        yield (f"Where {said} was crossed is interpolated between evaluations that lie further apart than a tenth of "
               f"the updates to it: {', '.join(wide)}.")


def _lives(story: RunStory) -> int:
    lineages = {version.partition(".")[0] for row in story.samples[-64:] for version, _ in row["segments"]}
    return max((int(lineage) + 1 for lineage in lineages), default=1)

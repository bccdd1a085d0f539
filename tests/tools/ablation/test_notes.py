import json
from dataclasses import replace

import pytest

from tools.ablation.arms import Match
from tools.ablation.notes import link_notes
from tools.ablation.outcome import outcome_of, stories_of

TRY = {"failed": "", "seconds": 1.0, "foreign": 0.02, "begun": "2026-01-02 03:04:05", "machine": {"cores": 2},
       "versions": {"torch": "2.13"}, "command": "c"}


def notes(config, cells):
    """Without those on links."""
    return [note for note in outcome_of(config, cells, stories_of(cells))["notes"] if "options together" not in note]


def change(cells, **values):
    """The summaries of these cells, changed."""
    for cell in cells:
        file = cell.folder / "summary.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(("values", "said"), [
    ({"git_commit": "other"}, "different code: commits c0ffee, other"),
    ({"git_commit": "c0ffee+changes"}, "different code: commits c0ffee, c0ffee+changes"),
    ({"git_commit": ""}, "different code: commits not known, c0ffee"),
    ({"accuracy_before": 0.3}, "different accuracies"),
    ({"prompts_digest": "ab"}, "asked different questions"),
])
def test_runs_that_do_not_belong_together_are_named(matrix, values, said):
    config, cells = matrix()
    change(cells, prompts_digest="cd")
    assert notes(config, cells) == []
    change(cells[:1], **values)
    (note,) = notes(config, cells)
    assert said in note


def test_code_that_no_commit_holds_is_said_though_all_runs_have_it(matrix):
    config, cells = matrix()
    change(cells, git_commit="0123456789abcdef+changes")
    (note,) = notes(config, cells)
    assert "no commit holds: 012345678+changes" in note


def test_a_machine_that_others_used_is_said_of_runs_that_are_taken_over_too(matrix):
    config, cells = matrix(report_only=True)
    for cell, foreign in zip(cells, (0.02, 0.25, None, 0.1), strict=True):
        cell.write_tries([{**TRY, "foreign": foreign}])
    (note,) = notes(config, cells)
    assert note == f"Others used more than 10% of the machine's cores during these runs: {cells[1].name} (25%)."


@pytest.mark.parametrize(("values", "said"), [
    ({"machine": {"cores": 4}}, "different machines"), ({"versions": {"torch": "2.14"}}, "different versions")])
def test_runs_from_elsewhere_are_said(matrix, values, said):
    config, cells = matrix()
    for i, cell in enumerate(cells):
        cell.write_tries([TRY | (values if i == 2 else {})])
    (note,) = notes(config, cells)
    assert said in note


def test_a_target_between_evaluations_far_apart_is_said(matrix):
    config, cells = matrix()
    assert notes(config, cells) == []
    for cell in cells[:2]:  # half of the evaluations, and the target at update 2 lies between them
        file = cell.folder / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines
                                if "heldout/accuracy" not in line or line["update"] in (0, 1, 4)))
    (note,) = notes(config, cells)
    assert all(f"{cell.name} (updates 1 to 4)" in note for cell in cells[:2])
    assert not any(cell.name in note for cell in cells[2:])


def test_a_run_that_made_all_its_updates_before_its_time_was_up_is_said(matrix):
    config, cells = matrix()
    config = replace(config, match=Match.seconds, amount=1e6)
    assert sum("before its time was up" in note for note in notes(config, cells)) == 4


def test_neighbours_that_differ_in_more_than_one_option_are_said():
    one = {"arm": "b", "against": "a", "whole": False, "differs": {"x.y": [1, 2], "z": [3, 4]}}
    assert link_notes([one]) == ["b over a changes 2 options together: x.y, z."]
    assert link_notes([{**one, "whole": True}, {**one, "differs": {"x.y": [1, 2]}}]) == []

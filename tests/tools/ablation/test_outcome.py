import csv
import io
import json

import pytest

from tools.ablation.cells import Ended
from tools.ablation.outcome import as_csv, outcome_of, stories_of
from tools.ablation.sheet import ablation_sheet
from tools.ablation.tables import markdown, sentences


def told(config, cells, ended=None):
    stories = stories_of(cells)
    return outcome_of(config, cells, stories, ended or {}, {"processor": "p"}), stories


def test_arms_are_summed_up_over_seeds_and_their_speed_up_is_taken_apart(matrix):
    config, cells = matrix()
    outcome, stories = told(config, cells)
    sync, _ = outcome["arms"]
    assert sync["measures"]["samples_per_second"]["mean"] == pytest.approx(16 * 1.005)
    (link,) = outcome["links"]
    assert link["factors"]["speed"]["mean"] == pytest.approx(2.0)
    assert link["factors"]["speed"]["low"] > 1.9
    assert link["factors"]["samples"]["mean"] == pytest.approx(1.0)
    assert link["factors"]["time"]["mean"] == pytest.approx(2.0)
    assert outcome["notes"] == []
    assert json.loads(json.dumps(outcome)) == outcome
    page = ablation_sheet(outcome, cells, stories)
    assert "overlap" in page
    assert "4 of 4 runs are complete" in page
    assert "| overlap (ahead over sync) | 2.00x" in markdown(outcome)
    assert "tokens per second 2.00x" in sentences(outcome)[0]
    rows = list(csv.DictReader(io.StringIO(as_csv(outcome))))
    assert [(row["arm"], row["seed"]) for row in rows] == [("sync", "0"), ("ahead", "0"), ("ahead", "1"), ("sync", "1")]
    assert float(rows[1]["samples_per_second"]) == 32.0


def test_a_run_that_is_cut_off_is_shown_and_is_part_of_no_mean(matrix):
    config, cells = matrix(cut=("ahead", 1))
    outcome, stories = told(config, cells)
    assert outcome["arms"][1]["measures"]["accuracy"]["seeds"] == 1
    assert "ahead seed 1: The run was cut off: 2 of 4 updates" in " ".join(outcome["notes"])
    cut = next(cell for cell in outcome["cells"] if not cell["complete"])
    assert cut["measures"]["updates"] == 2.0
    assert "Runs that are not complete" in ablation_sheet(outcome, cells, stories)


def test_a_run_that_never_began_leaves_its_last_words(matrix):
    config, cells = matrix()
    (cells[2].folder / "config.yaml").unlink()
    cells[2].log.write_text("warming up\nerror: <nothing> works\n")
    (cells[2].folder / "summary.json").unlink()
    outcome, stories = told(config, cells)
    assert "&lt;nothing&gt; works" in ablation_sheet(outcome, cells, stories)
    assert "no run folder" in " ".join(outcome["notes"])


def test_a_complete_run_with_a_damaged_file_is_part_of_no_mean(matrix):
    config, cells = matrix()
    (cells[2].folder / "metrics.jsonl").write_text("{\n{}\n")
    outcome, _ = told(config, cells)
    assert "damaged in line 1" in " ".join(outcome["notes"])
    assert [cell["complete"] for cell in outcome["cells"]].count(False) == 1


@pytest.mark.parametrize(("change", "said"), [
    ({"git_commit": "other"}, "different code: commits c0ffee, other"),
    ({"accuracy_before": 0.3}, "different accuracies"),
])
def test_runs_that_do_not_belong_together_are_named(matrix, change, said):
    config, cells = matrix()
    file = cells[0].folder / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert said in " ".join(told(config, cells)[0]["notes"])


def test_a_busy_machine_is_said(matrix):
    config, cells = matrix()
    loads = {cells[0].name: Ended("", 1.0, (0.1, 99.0)), cells[1].name: Ended("", 1.0, (9_999.0, 0.0))}
    (note,) = told(config, cells, loads)[0]["notes"]
    assert "busy" in note
    assert note.endswith("ahead seed 0 (9999.0).")


def test_a_target_out_of_reach_and_a_single_seed_are_said(matrix):
    config, cells = matrix(seeds=[0])
    config.target.__dict__["value"] = 0.95
    outcome, stories = told(config, cells)
    notes = " ".join(outcome["notes"])
    assert "was not reached by sync seed 0, ahead seed 0" in notes
    assert "One seed" in notes
    assert outcome["links"][0]["factors"]["time"] is None
    assert "not known" in sentences(outcome)[0]
    assert ablation_sheet(outcome, cells, stories)

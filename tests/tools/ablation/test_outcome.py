import csv
import io
import json

import pytest

from tools.ablation.arms import ArmConfig
from tools.ablation.markdown import markdown
from tools.ablation.outcome import as_csv, outcome_of, stories_of
from tools.ablation.sheet import ablation_sheet
from tools.ablation.tables import sentences


def told(config, cells):
    stories = stories_of(cells)
    return outcome_of(config, cells, stories), stories


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
    assert [note for note in outcome["notes"] if "options together" not in note] == []
    assert link["differs"]["schedule.max_staleness"] == [0, 2]
    assert link["accuracy"]["mean"] == 0.0
    (beside,) = [arm["differences"] for arm in outcome["arms"][1:]]
    assert beside["samples_per_second"] == {"kind": "ratio", "mean": pytest.approx(2.0), "low": pytest.approx(2.0),
                                            "high": pytest.approx(2.0), "seeds": 2, "outside": True}
    assert beside["accuracy"]["kind"] == "difference"
    assert not beside["accuracy"]["outside"]
    assert sync["differences"] == {}
    assert json.loads(json.dumps(outcome)) == outcome
    page = ablation_sheet(outcome, cells, stories)
    assert "overlap" in page
    assert "4 of 4 runs are complete" in page
    assert "| overlap (ahead over sync) | 2.00x" in markdown(outcome)
    assert "tokens per second 2.00x" in sentences(outcome)[0]
    rows = list(csv.DictReader(io.StringIO(as_csv(outcome))))
    assert sorted((row["arm"], row["seed"]) for row in rows) == [
        ("ahead", "0"), ("ahead", "1"), ("sync", "0"), ("sync", "1")]
    assert [row["arm"] for row in rows] == ["sync", "sync", "ahead", "ahead"], "not as they were run"
    assert {row["samples_per_second"] for row in rows if row["arm"] == "ahead" and row["seed"] == "0"} == {"32.0"}


def test_a_run_that_is_cut_off_is_shown_and_is_part_of_no_mean(matrix):
    config, cells = matrix(cut=("ahead", 1))
    outcome, stories = told(config, cells)
    assert outcome["arms"][1]["measures"]["accuracy"]["seeds"] == 1
    assert "ahead seed 1: The run was cut off: 2 of 4 updates" in " ".join(outcome["notes"])
    assert "one seed" in markdown(outcome)
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


def test_a_target_out_of_reach_and_a_single_seed_are_said(matrix):
    config, cells = matrix(seeds=[0])
    config.target.__dict__["value"] = 0.95
    outcome, stories = told(config, cells)
    notes = " ".join(outcome["notes"])
    assert outcome["cells"][0]["measures"]["target_by_updates"] is None
    assert "was not reached by sync seed 0, ahead seed 0" in notes
    assert "One seed" in notes
    assert outcome["links"][0]["factors"]["time"] is None
    assert "not known" in sentences(outcome)[0]
    assert ablation_sheet(outcome, cells, stories)


def test_a_middle_arm_that_was_not_asked_for_is_stepped_over_and_said(matrix):
    arms = [ArmConfig("sync"), ArmConfig("middle", against="sync", cause="a middle thing"),
            ArmConfig("ahead", ["schedule=async", "schedule.max_staleness=2"], "middle", "overlap")]
    config, cells = matrix(arms=arms, only=["sync", "ahead"])
    (link,) = told(config, cells)[0]["links"]
    assert (link["arm"], link["against"]) == ("ahead", "sync")
    assert link["cause"] == "overlap, and a middle thing (no run of middle)"


def test_what_was_written_down_when_runs_were_made_is_in_every_later_report(matrix):
    config, cells = matrix()
    one = {"failed": "", "seconds": 10.0, "foreign": 0.01, "begun": "2026-01-02 03:04:05",
           "machine": {"processor": "p"}, "versions": {"torch": "2.13"}, "command": "perilune ablate ablation=trial"}
    for cell in cells:
        cell.write_tries([one])
    outcome, stories = told(config, cells)
    assert outcome["made"]["seconds"] == 40.0
    for text in (markdown(outcome), ablation_sheet(outcome, cells, stories)):
        for said in ("c0ffee", "torch 2.13", "2026-01-02 03:04:05", "perilune ablate ablation=trial", "took 40 s"):
            assert said in text
    assert outcome["cells"][0]["tries"] == [one]

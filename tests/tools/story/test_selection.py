import json

from tests.tools.run_folders import write_run
from tools.story.folder import RunStory
from tools.story.selection import selection


def test_distributions_and_the_alarm_are_shown(tmp_path, texts):
    told = texts(selection(RunStory.read(write_run(tmp_path / "run"))))
    assert ("The alarm is on at update 4; it was on at 2 of 4 looks, each at level 0.01. Ages raise none.") in told
    for title in ("Lengths of groups", "Success rates", "Ages", "Kinds and tags", "Distance"):
        assert title in told
    assert any(text.startswith("selection bias: lengths of the 10 groups lost") for text in told)
    assert any("shares of 40 generated and 30 trained groups; distance 0.25, by chance below" in text for text in told)
    assert "<hard>, generated: 10" in told
    assert "<hard>, trained: 0" in told
    assert told[-2:] == ["generated", "trained"]


def test_without_a_summary_there_are_distances_alone(tmp_path, texts):
    told = texts(selection(RunStory.read(write_run(tmp_path / "run", whole=False))))
    assert any("off at update 2" in text and "come with the summary" in text for text in told)
    assert "Distance" in told
    assert "Ages" not in told


def test_a_run_that_wrote_nothing_of_it_says_so(tmp_path, texts):
    folder = write_run(tmp_path / "run", whole=False)
    (folder / "metrics.jsonl").write_text(json.dumps({"update": 0, "seconds": 1.0}) + "\n")
    assert "No group had left when the last line was written." in texts(selection(RunStory.read(folder)))


def test_of_many_kinds_those_that_lost_most_are_shown(tmp_path, texts):
    folder = write_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    summary["selection"]["distributions"]["kinds"] = {
        f"kind {k}": {"generated": 10, "trained": k} for k in range(10)}
    (folder / "summary.json").write_text(json.dumps(summary))
    told = texts(selection(RunStory.read(folder)))
    assert "kind 7, trained: 7" in told
    assert "kind 8, trained: 8" not in told
    assert any("8 of 10" in text for text in told)

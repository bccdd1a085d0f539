import json

import pytest

from engine.errors import RunFolderError
from engine.records.trajectory import DropReason
from engine.replay.ledger import Ledger
from engine.run_folder import FileLock
from engine.trace import FULL
from tests.tools.run_folders import write_run
from tools.story.folder import RunStory


def test_a_whole_run(tmp_path):
    story = RunStory.read(write_run(tmp_path / "run"))
    assert (story.name, story.missing, story.seconds) == ("smoke", (), 4.0)
    assert story.ledger["trajectories"]["trained"] == 64
    assert len(story.samples) == 40


def test_a_run_cut_off_tells_what_there_is_and_what_is_missing(tmp_path):
    folder = write_run(tmp_path / "run", whole=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"update": 3, "sec')
    story = RunStory.read(folder)
    assert story.summary is None
    assert "2 of 4 updates" in " ".join(story.missing)
    assert story.ledger["tokens"] | {"dropped": {}} == {
        "generated": 320, "carried_loss": 256, "masked": {"zero_advantage": 64}, "dropped": {}, "buffered": 0,
        "in_transit": 0}
    assert story.ledger["trajectories"]["buffered"] == 1
    assert story.seconds == 2.0


@pytest.mark.parametrize(("overrides", "done", "state", "missing"), [
    ((), 4, "", ()),
    ((), 3, "", ("The run was stopped at 3 of 4 updates; a resume goes on from there.",)),
    ((), 3, "stopped", ("The run was stopped at 3 of 4 updates; a resume goes on from there.",)),
    (("learning.max_seconds=2.5",), 3, "", ()),
    (("learning.max_seconds=9.0",), 3, "", ("The run was stopped at 3 of 4 updates; a resume goes on from there.",)),
    # Who only writes batches, or learns from some, is done with fewer updates.
    ((), 3, "complete", ()),
])
def test_a_stopped_run_says_where(tmp_path, overrides, done, state, missing):
    folder = write_run(tmp_path / "run", *overrides, updates=4)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"updates": done, "train_seconds": float(done)}))
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(one for one in lines if json.loads(one)["update"] <= done))
    if state:
        (folder / "status.json").write_text(json.dumps({"state": state}))
    assert RunStory.read(folder).missing == missing


def test_a_live_run_is_not_cut_off(tmp_path):
    folder = write_run(tmp_path / "run", whole=False)
    lock = FileLock.acquire(folder / ".lock")
    assert RunStory.read(folder).missing == ("The run is still running: 2 of 4 updates so far, no summary yet.",)
    lock.release()
    assert "cut off" in " ".join(RunStory.read(folder).missing)


def test_a_trace_that_was_full_is_told(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "trace.json").write_text("[\n" + json.dumps({"ph": "i", "name": FULL, "pid": 1, "tid": 0, "ts": 0}))
    (told,) = RunStory.read(folder).missing
    assert told.startswith("trace.json was full")


def test_dropped_tokens_of_a_run_cut_off_are_counted(tmp_path):
    folder = write_run(tmp_path / "run", whole=False)
    ledger = Ledger(folder / "ledger.msgpack")
    ledger._open = {10_000: ["", 0]}
    ledger.deliver(10_000, 7, finished=True)
    ledger.drop([10_000], DropReason.no_spread)
    ledger.report("generator-0#1", 0, 3)
    ledger.lose("generator-0#1")
    ledger.close()
    tokens = RunStory.read(folder).ledger["tokens"]
    assert tokens["dropped"] == {"no_spread": 7, "generator_lost": 3}
    assert (tokens["generated"], tokens["buffered"]) == (330, 0)


def test_a_run_that_died_at_once_is_a_story_too(tmp_path):
    folder = write_run(tmp_path / "run", whole=False)
    for name in ("metrics.jsonl", "samples.jsonl", "ledger.msgpack"):
        (folder / name).unlink()
    story = RunStory.read(folder)
    assert story.curves.updates == 0
    assert {"No version was evaluated.", "The ledger is empty."} <= set(story.missing)


def test_a_damaged_journal_is_followed_as_far_as_it_goes(tmp_path):
    folder = write_run(tmp_path / "run", whole=False)
    with (folder / "ledger.msgpack").open("ab") as file:
        file.write(b"\x00\x00")
    assert "as far as it can be followed" in " ".join(RunStory.read(folder).missing)


def test_what_is_no_run_folder_or_damaged_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="no run folder"):
        RunStory.read(tmp_path)
    folder = write_run(tmp_path / "run")
    (folder / "summary.json").write_text(json.dumps({"updates": 4})[:-3])
    with pytest.raises(RunFolderError, match=r"summary\.json is damaged"):
        RunStory.read(folder)

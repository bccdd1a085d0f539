import json

import pytest

from engine.trace import FULL
from tests.tools.run_folders import write_run
from tools.pages.lanes import Stretch
from tools.story.folder import RunStory
from tools.story.work import covered, decode_steps, idle_shares, trace_lanes, waits, work_lanes

EVENTS = [
    {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "generator-0#1"}},
    {"ph": "X", "name": "decode", "pid": 1, "tid": 1, "ts": 500_000, "dur": 400_000, "args": {}},
    {"ph": "i", "s": "g", "name": "training begins", "pid": 1, "tid": 1, "ts": 1_000_000},
    {"ph": "X", "name": "decode", "pid": 1, "tid": 1, "ts": 1_000_000, "dur": 2_000_000,
     "args": {"steps": 7}},
    {"ph": "X", "name": "step", "pid": 1, "tid": 1, "ts": 1_500_000, "dur": 100_000, "args": {}},
    {"ph": "X", "name": "wait: room in the window", "pid": 1, "tid": 1, "ts": 3_000_000, "dur": 2_000_000, "args": {}},
    {"ph": "s", "name": "trajectory", "id": 1, "pid": 1, "tid": 1, "ts": 1_000_000},
]


def write_trace(folder, end="\n]\n"):
    (folder / "trace.json").write_text("[\n" + ",\n".join(map(json.dumps, EVENTS)) + end)


def test_lanes_of_a_trace_begin_with_training_and_a_torn_end_is_no_harm(tmp_path):
    for end in ("\n]\n", ',\n{"ph": "X", "na', ',\n{"ph": "X", "args": {}'):
        write_trace(tmp_path, end)
        ((name, stretches),) = trace_lanes(tmp_path / "trace.json")
        assert name == "generator-0#1"
        assert stretches == [Stretch(0.0, 2.0, "decode"), Stretch(0.5, 0.6, "step"),
                             Stretch(2.0, 4.0, "room in the window", True)]
    assert waits([(name, stretches)]) == [("generator-0", "room in the window", 2.0)]


def test_idle_is_what_no_work_covers(tmp_path):
    folder = write_run(tmp_path / "run")
    told = idle_shares(RunStory.read(folder))
    assert told == {"generator-0": 0.25, "learner": 0.5}, "incarnations are one actor"
    write_trace(folder)
    story = RunStory.read(folder)
    assert idle_shares(story) == {"generator-0": 0.5}, "the trace knows better, and a wait is no work"
    assert "trace.json" in work_lanes(story)[1]
    assert decode_steps(story) == 7


def test_a_trace_with_a_pause_in_it_tells_nothing_of_idleness(tmp_path):
    folder = write_run(tmp_path / "run")
    again = {"ph": "i", "s": "g", "name": "training begins", "pid": 1, "tid": 1, "ts": 60_000_000}
    write_trace(folder, f",\n{json.dumps(again)}\n]\n")
    assert idle_shares(RunStory.read(folder)) == {"generator-0": 0.25, "learner": 0.5}, "the summary knows both lives"


def test_a_trace_that_was_full_tells_nothing_of_idleness_nor_of_steps(tmp_path):
    folder = write_run(tmp_path / "run")
    full = {"ph": "i", "s": "g", "name": FULL, "pid": 1, "tid": 0, "ts": 4_000_000}
    write_trace(folder, f",\n{json.dumps(full)}\n]\n")
    story = RunStory.read(folder)
    assert idle_shares(story) == {"generator-0": 0.25, "learner": 0.5}, "the summary knows all of it"
    assert decode_steps(story) == 0
    assert "trace.json was full" in " ".join(story.missing)


@pytest.mark.parametrize(("cluster", "idle"), [("serial", 0.75), ("ray", 0.25)])
def test_in_one_process_the_work_of_others_is_not_the_drivers(tmp_path, cluster, idle):
    folder = write_run(tmp_path / "run", *(["cluster=ray"] if cluster == "ray" else []))
    driver = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 2, "args": {"name": "driver"}},
        # From 1 s to 4 s of training; the generator works until the 2nd.
        {"ph": "X", "name": "generator: advance", "pid": 1, "tid": 2, "ts": 2_000_000, "dur": 3_000_000, "args": {}},
        {"ph": "X", "name": "replay: deliver", "pid": 1, "tid": 2, "ts": 2_000_000, "dur": 1_000_000, "args": {}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 3, "args": {"name": "learner"}},
        {"ph": "X", "name": "forward", "pid": 1, "tid": 3, "ts": 3_500_000, "dur": 1_000_000, "args": {}},
    ]
    write_trace(folder, "".join(f",\n{json.dumps(event)}" for event in driver))
    story = RunStory.read(folder)
    assert idle_shares(story) == {"driver": idle, "generator-0": 0.5, "learner": 0.75}
    assert ("inside the driver's" in work_lanes(story)[1]) is (cluster == "serial")


def test_of_a_run_without_its_end_only_what_the_trace_covers_counts(tmp_path):
    folder = write_run(tmp_path / "run", updates=20, whole=False)
    write_trace(folder, "")
    assert RunStory.read(folder).seconds == 10.0
    assert idle_shares(RunStory.read(folder)) == {"generator-0": 0.5}, "of the 4 seconds that it tells of"


def test_without_a_trace_the_learner_alone_is_known_by_time(tmp_path):
    story = RunStory.read(write_run(tmp_path / "run", whole=False))
    ((name, stretches),), origin = work_lanes(story)
    assert (name, len(stretches)) == ("learner", 2)
    assert "no trace.json" in origin
    assert idle_shares(story) == {"learner": 0.5}
    assert decode_steps(story) == 0


def test_work_beyond_the_end_does_not_count():
    assert covered([Stretch(0, 4, "a"), Stretch(1, 2, "b")], 3) == 3

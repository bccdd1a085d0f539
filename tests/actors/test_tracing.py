"""The trace of real runs: its schema, lanes without improper overlaps, named waits, arrows that arrive."""

import json
from collections import defaultdict

import pytest

from actors.controller import Controller
from actors.placement import role_of
from actors.tracing import BEGINS, Lane, Tracer, waits_for
from engine.config.schedule import ScheduleConfig
from engine.records import event as ev
from engine.records.span import Span
from engine.records.trajectory import DropReason
from engine.records.version import PolicyVersion
from engine.records.work import GeneratorReport, JudgeReport
from engine.replay.ledger import read_journal
from engine.trace import TraceWriter, read_trace
from tests.actors.fake_driver import changed
from tests.end_to_end.harness import ASYNC, train

WORK = {"prefill", "decode", "receive", "judge", "pack", "forward", "backward", "optimiser", "publish",
        "wake", "sleep", "onload", "offload"}
TURNS = ("cluster.placement=colocated",)
FIELDS = {"M": {"args"}, "X": {"tid", "ts", "dur", "args"}, "i": {"tid", "ts", "s", "args"},
          "s": {"tid", "ts", "id"}, "t": {"tid", "ts", "id"}, "f": {"tid", "ts", "id"}}


def check_schema(events):
    for event in events:
        assert FIELDS[event["ph"]] | {"name", "pid"} <= event.keys(), event
        assert all(isinstance(event[key], int) for key in ("ts", "dur", "tid", "pid", "id") if key in event), event
        assert event.get("dur", 0) >= 0, event


def lanes_of(events):
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    lanes = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            lanes[names[event["tid"]]].append((event["ts"], event["ts"] + event["dur"], event["name"]))
    return lanes


def check_nesting(slices):
    """Every slice lies beside or inside every other of its lane."""
    stack = []
    for start, stop, name in sorted(slices, key=lambda one: (one[0], -one[1])):
        while stack and stack[-1][1] <= start:
            stack.pop()
        assert not stack or stop <= stack[-1][1], (name, stack[-1])
        stack.append((start, stop, name))


@pytest.fixture(scope="module", params=[(), ASYNC, TURNS], ids=["sync", "async", "turns"])
def overrides(request):
    return request.param


@pytest.fixture(scope="module")
def folder(overrides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("traced")
    train(folder, "learning.updates=2", "evaluation.every=1", "prompts.num_heldout=2", *overrides)
    return folder


@pytest.fixture(scope="module")
def events(folder):
    return json.loads((folder / "trace.json").read_text())


def test_a_run_leaves_a_trace_that_viewers_accept(events, overrides):
    check_schema(events)
    lanes = lanes_of(events)
    assert lanes.keys() == {"driver", "learner", "judge#1", "generator-0#1", "evaluator#1"}
    for slices in lanes.values():
        check_nesting(slices)
    moves, sleeps = ({"onload", "offload"}, {"wake", "sleep"}) if overrides == TURNS else (set(), set())
    assert {name for _, _, name in lanes["learner"] if not name.startswith("wait")} == {
        "pack", "forward", "backward", "optimiser", "publish"} | moves
    for sampler in ("generator-0#1", "evaluator#1"):
        assert {name for _, _, name in lanes[sampler] if name in WORK} == {"prefill", "decode", "receive"} | sleeps
    assert {name for _, _, name in lanes["judge#1"] if name in WORK} == {"judge"}
    moments = [e["name"] for e in events if e["ph"] == "i"]
    assert moments == [BEGINS, "version 1", "version 2"]


def test_every_wait_says_what_it_waits_for(events):
    lanes = lanes_of(events)
    waits = {name for slices in lanes.values() for _, _, name in slices if name.startswith("wait")}
    assert "wait: complete groups" in {name for _, _, name in lanes["learner"]}
    assert waits <= {f"wait: {what}" for what in (
        "the driver", "its turn", "finished answers", "the next evaluation", "complete groups", "an older group",
        "its turn on the device",
        "room in the window", "the update", "the end of the round", "verdicts", "weights at every generator",
        "the end of the run", "the checkpoint")}


def test_arrows_lead_from_a_prompt_to_its_update(events):
    slices = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            slices[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    points = defaultdict(list)
    names = {e["tid"]: role_of(e["args"]["name"]) for e in events if e["name"] == "thread_name"}
    for event in events:
        if event["ph"] in "stf":
            assert any(a <= event["ts"] <= b for a, b in slices[event["tid"]]), event
            points[event["id"]].append((event["ts"], event["ph"], names[event["tid"]]))
    whole = [sorted(found) for found in points.values() if any(phase == "f" for _, phase, _ in found)]
    assert whole
    for found in whole:
        roles = [role for _, _, role in found]
        assert roles[0] == "driver"
        assert roles[-2:] == ["judge", "learner"]
        assert set(roles[1:-2]) == {"generator"}


def test_every_flow_has_one_start_and_one_end_bound_to_slices(folder, events):
    slices, flows = defaultdict(list), defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            slices[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] in "stf":
            assert (event["cat"], event["name"], event["bp"]) == ("trajectory", "trajectory", "e")
            flows[event["id"]].append(event)
    trained, under_way = set(), set()
    for kind, *rest in read_journal(folder / "ledger.msgpack"):
        trained |= set(rest[0]) if kind == "consume" else set()
        under_way |= set(rest[0]) if kind == "drop" and rest[1] == "end_of_run" else set()
    assert flows.keys() & trained
    for key, found in flows.items():
        phases = [event["ph"] for event in sorted(found, key=lambda event: event["ts"])]
        whole = ["s", *["t"] * (len(phases) - 2), "f"]
        assert phases == (["s", *["t"] * (len(phases) - 1)] if key in under_way else whole), key
        for event in found:
            assert any(start <= event["ts"] < stop for start, stop in slices[event["tid"]]), event


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_run_cut_anywhere_leaves_a_trace_to_read_and_to_go_on_with(folder, events, tmp_path, share):
    whole, cut = (folder / "trace.json").read_bytes(), tmp_path / "trace.json"
    cut.write_bytes(whole[: int(len(whole) * share)])
    kept = read_trace(cut)
    assert kept == events[: len(kept)]
    assert len(kept) >= cut.read_bytes().count(b"\n") - 1, "all but the torn line"
    TraceWriter(cut, 10**9).close()
    assert json.loads(cut.read_text()) == kept


# ---- parts --------------------------------------------------------------------------------------------


@pytest.fixture
def traced(config, run_folder):
    controller = Controller(ScheduleConfig(batch_groups=2), samples_per_prompt=1, updates=1)
    tracer = Tracer(changed(config, {"cluster.kind": "ray"}), run_folder, controller)
    yield tracer
    tracer.close()


def test_a_clock_that_lies_is_set_right_by_what_cannot_be():
    lane = Lane()
    assert lane.offset(sent=1.0, start=1.2, stop=1.5, received=2.0) == 0.0
    lane = Lane()
    ahead = lane.offset(sent=1.0, start=6.2, stop=6.5, received=2.0)
    assert ahead == pytest.approx(-4.5)
    closer = lane.offset(sent=3.0, start=7.6, stop=7.9, received=3.1)
    assert closer == pytest.approx(-4.8)
    assert lane.offset(sent=4.0, start=4.0, stop=4.1, received=4.2) == pytest.approx(0.0), "it was set meanwhile"


def test_a_lane_shows_the_work_and_every_gap(traced, run_folder):
    def answered(sent, start, stop, kind="decode"):
        report = GeneratorReport("generator-0#1", (), PolicyVersion(0, 0), "", busy=((start, stop),),
                                 spans=(Span(kind, start, stop, {"steps": 1}),))
        with traced.handling("generator-0#1", "advance", sent, report):
            pass

    traced.called("generator-0#1")
    answered(10.0, 10.1, 10.5)
    traced.called("generator-0#1")
    answered(11.0, 11.2, 11.6)
    traced.close()
    found = [(name, start, stop) for start, stop, name in lanes_of(read_trace(run_folder.trace_file))["generator-0#1"]]
    assert found[:3] == [("decode", 10_100_000, 10_500_000), ("wait: the driver", 10_500_000, 11_200_000),
                         ("decode", 11_200_000, 11_600_000)]
    assert found[3][:2] == ("wait: the driver", 11_600_000), "until the end"


def test_an_answer_that_tells_nothing_takes_no_time(traced, run_folder):
    traced.called("judge#1")
    with traced.handling("judge#1", "judge", 1.0, JudgeReport({})), traced.part("replay: judged"):
        pass
    traced.left("judge#1")
    traced.left("judge#1")
    traced.close()
    lanes = lanes_of(read_trace(run_folder.trace_file))
    assert {name for _, _, name in lanes["driver"]} == {"judge: judge", "replay: judged"}
    check_nesting(lanes["driver"])


def test_an_arrow_lies_inside_its_slice_however_its_time_is_rounded(traced, run_folder):
    # A clock of this size has steps of a quarter of a microsecond, and two halves may round to one number.
    began, step = 1_700_000_000.0, 2.0**-22
    for key in range(16):
        with traced.handling("judge#1", "judge", 1.0, JudgeReport({})):
            traced.saw(ev.Admit(key, "p", (key,)))
        start = began + key
        spans = (Span("judge", start, start + 0.001 + key * step),)
        with traced.handling(f"judge#{key + 2}", "judge", start, JudgeReport({key: None}, spans=spans)):
            pass
    traced.close()
    events = read_trace(run_folder.trace_file)
    slices = {e["tid"]: (e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X" and e["name"] == "judge"}
    points = [(e["ts"], slices[e["tid"]]) for e in events if e["ph"] == "t"]
    assert points
    assert [(at, found) for at, found in points if not found[0] <= at < found[1]] == []


def test_arrows_of_a_dropped_group_end_where_it_is_dropped(traced, run_folder):
    with traced.handling("judge#1", "judge", 1.0, JudgeReport({})):
        traced.saw(ev.Admit(0, "p", (7, 8)))
    with traced.handling("judge#1", "judge", 1.0, JudgeReport({})):
        traced.saw(ev.DropGroup(0, "p", DropReason.no_spread))
        traced.saw(ev.DropGroup(0, "p", DropReason.no_spread))
    traced.close()
    arrows = [(e["ph"], e["id"]) for e in read_trace(run_folder.trace_file) if e["ph"] in "stf"]
    assert arrows == [("s", 7), ("f", 7)]


def test_what_is_lacked_follows_from_the_state_of_the_controller():
    sync = Controller(ScheduleConfig(batch_groups=1), samples_per_prompt=1, updates=9)
    assert waits_for("judge", sync) == "finished answers"
    assert waits_for("evaluator", sync) == "the next evaluation"
    assert waits_for("learner", sync) == "complete groups"
    assert waits_for("generator", sync) == "weights at every generator"
    sync.step(ev.GeneratorJoined("g", PolicyVersion(0, 0)))
    sync.step(ev.Drawn(("p",)))
    assert waits_for("generator", sync) == "the end of the round"
    sync.step(ev.StopRequested())
    assert waits_for("generator", sync) == waits_for("learner", sync) == "the checkpoint"
    turns = Controller(ScheduleConfig(batch_groups=1), samples_per_prompt=1, updates=9)
    turns.roster.training = {0}
    assert waits_for("learner", turns) == "its turn on the device"
    free = Controller(ScheduleConfig(kind="async", max_staleness=1, batch_groups=1), samples_per_prompt=1, updates=9)
    assert waits_for("generator", free) == "room in the window"

import pytest

from actors.simulation.life import Busy, read_life
from engine.records.span import Span

NAMES = {1: "driver", 2: "generator-0#1", 3: "evaluator#1", 4: "learner"}


def event(ph, tid, name, start, seconds=0.0, **args):
    return {"ph": ph, "pid": 1, "tid": tid, "name": name, "ts": int(start * 1e6), "dur": int(seconds * 1e6),
            "args": args}


EVENTS = [
    *({"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": {"name": name}} for tid, name in NAMES.items()),
    event("X", 3, "prefill", 1.0, 0.5, tokens=10),
    event("i", 1, "training begins", 2.0),
    event("X", 2, "decode", 2.5, 0.5),
    event("i", 1, "version 1", 3.0, committed=True),
    event("X", 3, "decode", 4.0, 0.5, tokens=10),
    event("i", 1, "training begins", 10.0),
    event("X", 2, "wait: the driver", 10.0, 0.5),
    event("X", 2, "decode", 10.5, 0.5, steps=2),
    event("X", 1, "generator: advance", 11.0, 0.1, out_s=0.6, ran_s=0.5, items=1),
    event("X", 1, "replay: deliver", 11.0, 0.05),
    event("X", 1, "checkpoint", 12.0, 1.0),
    event("i", 1, "version 1", 14.0, committed=True, tokens=5, staleness={"0": 3, "2": 2}),
    event("i", 1, "version 1", 15.0, committed=False, tokens=5),
    event("s", 1, "trajectory", 15.0),
]


def test_only_the_newest_life_counts():
    life = read_life(EVENTS)
    assert [(one.start, one.seconds) for one in life.of("generator")] == [(0.5, 0.5)]
    assert life.of("generator", "prefill") == []
    assert [one.amounts["items"] for one in life.answers["generator"]] == [1]
    assert [one.seconds for one in life.checkpoints] == [1.0]
    assert [one.start for one in life.commits] == [4.0], "what was not committed is no update"
    assert life.staleness == {0: 3, 2: 2}
    assert [one.kind for one in life.first_look] == ["prefill"], "not what an earlier life evaluated later"


@pytest.mark.parametrize(("start", "stop", "seconds"), [
    (0, 10, 5), (1, 2, 1), (2.5, 2.7, 0), (3.5, 9, 1.5), (20, 30, 0),
])
def test_busy_time_counts_overlaps_once(start, stop, seconds):
    busy = Busy([Span("a", 0, 1.5), Span("b", 1, 2), Span("c", 3, 5), Span("d", 9, 10)])
    assert float(busy.within(start, stop)) == pytest.approx(seconds)


def test_nobody_is_never_busy():
    assert float(Busy([]).within(0.0, 1.0)) == 0.0

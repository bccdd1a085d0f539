"""Spans where work is done; a file that is whole after a kill, continued after a resume, and never too large."""

import json
import threading
from itertools import pairwise

import pytest

from engine import trace
from engine.errors import RunFolderError
from engine.trace import FULL, TraceWriter, is_full, now, read_trace, recording, since, span, spanned


@pytest.fixture
def file(tmp_path):
    return tmp_path / "trace.json"


def test_spans_are_kept_where_somebody_records():
    with span("forward"):
        since(now(), "decode", steps=1)
    with recording() as outer:
        with span("pack", tokens=3), recording(False), span("nobody"):
            pass
        with recording() as inner, span("publish"):
            pass
    assert [(one.kind, one.amounts) for one in outer] == [("pack", {"tokens": 3})]
    assert [one.kind for one in inner] == ["publish"]
    assert outer[0].start <= outer[0].stop <= inner[0].start


def test_a_span_ends_with_an_error_too():
    with recording() as spans, pytest.raises(ZeroDivisionError), span("forward"):
        raise ZeroDivisionError
    assert len(spans) == 1


def test_a_decorated_function_is_a_span():
    @spanned("optimiser")
    def step(by: int = 1) -> int:
        """Documented."""
        return by

    with recording() as spans:
        assert step(by=2) == 2
    assert [one.kind for one in spans] == ["optimiser"]
    assert step.__doc__ == "Documented."


def test_another_thread_records_for_itself():
    with recording() as spans:
        other = threading.Thread(target=lambda: since(now(), "decode", steps=1))
        other.start()
        other.join(timeout=10)
    assert not other.is_alive()
    assert spans == []


def test_steps_in_a_row_are_one_span_and_prefill_comes_between(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(trace, "now", lambda: next(clock) * 1e-4)
    with recording() as spans:
        for step in range(5):
            began = trace.now()
            if step == 3:
                with span("prefill"):
                    pass
            since(began, "decode", steps=1, tokens=step)
    assert [(one.kind, dict(one.amounts)) for one in spans] == [
        ("decode", {"steps": 3, "tokens": 3}), ("prefill", {}), ("decode", {"steps": 2, "tokens": 7}),
    ]
    assert all(one.stop <= other.start for one, other in pairwise(spans))


def test_a_whole_trace_is_json_and_lanes_have_names(file):
    writer = TraceWriter(file, 10**6)
    writer.slice("learner", "forward", 1.0, 1.5, {"tokens": 2})
    writer.moment("driver", "version 1", 1.5, {"updates": 1})
    writer.arrow("learner", 7, 1.2, "f")
    writer.close()
    writer.close()
    events = json.loads(file.read_text())
    assert events == read_trace(file)
    names = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    assert names.keys() == {"learner", "driver"}
    (forward,) = (e for e in events if e["ph"] == "X")
    assert forward == {"ph": "X", "name": "forward", "pid": 1, "tid": names["learner"], "ts": 1_000_000,
                       "dur": 500_000, "args": {"tokens": 2}}
    (arrow,) = (e for e in events if e["ph"] == "f")
    assert (arrow["id"], arrow["tid"], arrow["ts"]) == (7, names["learner"], 1_200_000)


def test_what_was_flushed_survives_a_kill_and_a_later_life_goes_on(file):
    writer = TraceWriter(file, 10**6)
    writer.slice("learner", "forward", 1.0, 2.0, {})
    writer.flush()
    assert read_trace(file)[-1]["name"] == "forward", "without its end"
    with file.open("ab") as torn:
        torn.write(b',\n{"ph":"X","na')
    assert read_trace(file)[-1]["name"] == "forward"
    for life in range(2):
        writer = TraceWriter(file, 10**6)
        writer.slice("judge", "judge", 3.0 + life, 4.0, {})
        writer.slice("learner", "backward", 5.0 + life, 6.0, {})
        writer.close()
    events = json.loads(file.read_text())
    assert [e["name"] for e in events if e["ph"] == "X"] == ["forward", "judge", "backward", "judge", "backward"]
    assert len([e for e in events if e["name"] == "thread_name"]) == 2, "lanes keep their names"


@pytest.mark.parametrize("left", [b"", b"[", b"[\n{", b"nonsense"])
def test_a_file_without_an_event_begins_anew(file, left):
    file.write_bytes(left)
    writer = TraceWriter(file, 10**6)
    writer.close()
    assert [e["name"] for e in json.loads(file.read_text())] == ["process_name"]


def test_it_stops_growing_and_says_so(file):
    writer = TraceWriter(file, 3000)
    for index in range(1000):
        writer.slice("driver", "work", index, index + 1, {})
    writer.close()
    events = json.loads(file.read_text())
    assert writer.full
    assert is_full(file)
    assert events[-1]["name"] == FULL
    assert "max_trace_mib" in FULL
    assert file.stat().st_size < 3300


def test_a_trace_that_was_not_full_and_none_at_all_are_not_full(file):
    assert not is_full(file)
    writer = TraceWriter(file, 10**6)
    writer.slice("driver", "work", 1.0, 2.0, {})
    writer.close()
    assert not is_full(file)


def test_refusals_name_the_file_and_the_remedy(tmp_path):
    with pytest.raises(RunFolderError, match="cannot be written"):
        TraceWriter(tmp_path / "missing" / "trace.json", 100)
    with pytest.raises(RunFolderError, match=r"run\.trace=true"):
        read_trace(tmp_path / "trace.json")
    writer = TraceWriter(tmp_path / "trace.json", 10**6)
    (tmp_path / "trace.json").unlink()
    (tmp_path / "trace.json").mkdir()
    writer.moment("driver", "x", 0.0, {})
    with pytest.raises(RunFolderError, match="cannot grow"):
        writer.flush()

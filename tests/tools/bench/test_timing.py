from __future__ import annotations

import pytest

from tools.bench.timing import machine, seconds_of, show, spread, take_turns


def test_sides_take_turns_and_warm_ups_are_not_kept() -> None:
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    times = take_turns({"a": lambda: side("a"), "b": lambda: side("b")}, repeats=2, warmups=1)
    assert calls == ["a", "b"] * 3
    assert times == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_seconds_are_those_of_the_call() -> None:
    done: list[bool] = []
    assert seconds_of(lambda: done.append(True)) >= 0.0
    assert done == [True]


def test_the_spread_is_not_a_mean() -> None:
    assert spread([1.0, 100.0, 2.0]) == {"median": 2.0, "least": 1.0, "largest": 100.0, "repeats": 3}


def test_a_machine_is_described_by_what_numbers_depend_on() -> None:
    facts = machine()
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert facts["threads"] >= 1
    assert len(facts["load_average"]) == 3


def test_medians_are_printed_with_their_spread(capsys: pytest.CaptureFixture[str]) -> None:
    show({"a": {"median": 2.0, "least": 1.0, "largest": 3.0, "repeats": 5}, "m": {"b": None}})
    assert capsys.readouterr().out == "a: 2 (1 .. 3, 5 repeats)\nm:\n  b: None\n"

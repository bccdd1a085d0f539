from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from engine.models.policy import published_tensors
from tools.bench import update
from tools.bench.subject import Subject


class FakeTrl:
    """Answers at once, with so many tokens."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.asked, self.closed = tokens, 0, False

    def ask(self) -> dict[str, Any]:
        self.asked += 1
        return {"seconds": 1e9, "tokens": self.tokens}

    def close(self) -> None:
        self.closed = True


def pretend(monkeypatch: pytest.MonkeyPatch, other: FakeTrl | None) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if other is None else name)
    monkeypatch.setattr(update, "trl_side", lambda *_: other)


def test_an_update_samples_learns_and_serves_what_it_learned(subject: Subject) -> None:
    loop = update.Loop(subject)
    before = {name: t.clone() for name, t in published_tensors(loop.core.network).items()}
    loop.update()
    loop.update()
    assert loop.core.version.updates == 2
    assert loop.sampler.version == loop.core.version
    assert loop.sampler.metrics()["sampled_tokens"] == 2 * 4 * subject.amounts.update_tokens
    assert any((before[n] != t).any() for n, t in published_tensors(loop.core.network).items())


def test_samples_per_second_are_set_against_those_of_trl(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FakeTrl(tokens=1000)
    pretend(monkeypatch, other)
    found = update.measure(subject, repeats=2, rows=4)
    assert other.asked == 3
    assert other.closed
    assert found["update_seconds_trl"]["repeats"] == found["update_seconds_perilune"]["repeats"] == 2
    own, its = found["samples_per_second_perilune"], found["samples_per_second_trl"]
    assert its == pytest.approx(4 / 1e9)
    assert found["ratio_samples_per_second_vs_trl"] == pytest.approx(own / its)


def test_a_side_that_skips_work_is_not_compared(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, other := FakeTrl(tokens=4 * subject.amounts.update_tokens - 1))
    with pytest.raises(AssertionError, match="skipped"):
        update.measure(subject, repeats=1, rows=4)
    assert other.closed


def test_without_trl_there_is_no_ratio_and_it_is_said(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, None)
    found = update.measure(subject, repeats=1, rows=4)
    assert found["ratio_samples_per_second_vs_trl"] is None
    assert "perilune[bench]" in found["note_trl"]


@pytest.mark.slow
def test_trl_itself_makes_the_same_update(subject: Subject) -> None:
    pytest.importorskip("trl")
    found = update.measure(subject, repeats=1, rows=4)
    assert found["ratio_samples_per_second_vs_trl"] > 0

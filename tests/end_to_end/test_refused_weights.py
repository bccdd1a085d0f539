"""Weights that arrive damaged are refused, reported and never served; generators that are late are replaced."""

import json
import os
import signal
from pathlib import Path

import pytest

from actors.generator import Generator
from actors.learner import Learner
from tests.end_to_end.harness import ASYNC, RAY, train
from tools.audit import audit


def damage(monkeypatch, nth: int) -> list[str]:
    """Flip a bit of the nth published file, after its digests were taken; paths that were damaged."""
    damaged: list[str] = []
    count = 0
    publish = Learner.publish

    def published(self, *refused):
        nonlocal count
        manifest = publish(self, *refused)
        count += 1
        if count == nth:
            with Path(manifest.location).open("r+b") as file:
                file.seek(100)
                byte = file.read(1)[0]
                file.seek(100)
                file.write(bytes([byte ^ 1]))
            damaged.append(manifest.location)
        return manifest

    monkeypatch.setattr(Learner, "publish", published)
    return damaged


@pytest.mark.parametrize("schedule", [(), ASYNC], ids=["sync", "async"])
def test_damaged_weights_are_never_served(tmp_path, monkeypatch, undisturbed, schedule):
    damaged = damage(monkeypatch, nth=2)
    answers = []
    advance = Generator.advance

    def noted(self, order):
        report = advance(self, order)
        answers.append((report.generator, str(report.version), report.digest, report.refused))
        return report

    monkeypatch.setattr(Generator, "advance", noted)
    summary = train(tmp_path / "run", *schedule)
    refusals = [name for name, *_, refused in answers if refused]
    assert len(damaged) == 1
    assert refusals == ["generator-0#1"], "the next one receives what was written anew"
    assert len({(version, digest) for _, version, digest, _ in answers}) == len({v for _, v, _, _ in answers})
    assert summary["restarts"] == 1
    assert summary["updates"] == 3
    assert summary["ledger"]["closes"]
    audit(tmp_path / "run")
    if not schedule:
        assert summary["weights_digest"] == undisturbed["weights_digest"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_generator_that_says_nothing_is_replaced(live):
    life = live(*RAY, "cluster.call_deadline_s=20", fault="generator.decode:27:STOP")
    hung = life.stopped_at("generator.decode")
    assert life.ended() == 0, life.says()
    life.nothing_left()
    summary = json.loads((life.folder / "summary.json").read_text())
    assert summary["restarts"] == 1
    assert summary["updates"] == 3
    assert summary["ledger"]["tokens"]["dropped"].get("generator_lost", 0) >= 0
    with pytest.raises(ProcessLookupError):
        os.kill(hung, signal.SIGCONT)
    audit(life.folder)

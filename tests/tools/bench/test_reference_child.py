from __future__ import annotations

import dataclasses
from contextlib import closing

import pytest

from tools.bench.reference_child import Job, reference_side, side_of
from tools.bench.subject import Subject


@pytest.mark.parametrize("name", ["learner", "sampler"])
def test_both_steps_can_be_asked_for(subject: Subject, name: str) -> None:
    job = Job(name, str(subject.folder), dataclasses.asdict(subject.amounts), subject.threads, 1)
    side = side_of(job)
    assert side() > 0.0
    assert side() > 0.0


@pytest.mark.slow
def test_the_other_process_runs_without_the_kernels(subject: Subject) -> None:
    with closing(reference_side(subject, "sampler", 2)) as child:
        assert child.ask()["seconds"] > 0.0

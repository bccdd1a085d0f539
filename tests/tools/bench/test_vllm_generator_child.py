from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import closing
from importlib.util import find_spec

import pytest

from engine.config.rollout import GeneratorKind
from tools.bench.child import Child
from tools.bench.subject import Subject
from tools.bench.vllm_child import Job
from tools.bench.vllm_generator_child import repeat_of


def job_of(subject: Subject) -> Job:
    return Job(str(subject.folder), [tokens.tolist() for tokens in subject.tokens[:3]], 6, 1)


def test_every_repeat_samples_all_tokens(subject: Subject) -> None:
    """With the native sampler, which is built and asked the same way."""
    repeat = repeat_of(job_of(subject), GeneratorKind.native)
    for _ in range(2):
        found = repeat()
        assert found["tokens"] == 18
        assert found["seconds"] > 0.0


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm")
def test_every_line_generates_all_sequences(subject: Subject) -> None:
    job = json.dumps(dataclasses.asdict(job_of(subject)))
    command = [sys.executable, "-m", "tools.bench.vllm_generator_child", job]
    with closing(Child("vllm_generator", command, 600.0)) as child:
        assert [child.ask()["tokens"] for _ in range(2)] == [18, 18]

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from tools.bench.child import Child
from tools.bench.vllm_child import Job

STAND_IN = """
from types import SimpleNamespace
SamplingParams = lambda **options: SimpleNamespace(**options)
class LLM:
    def __init__(self, **options):
        assert options["model"] == "folder" and options["max_model_len"] == 3 + 5, options
        assert options["dtype"] == "bfloat16", options
    def generate(self, prompts, how, use_tqdm):
        assert [one["prompt_token_ids"] for one in prompts] == [[1, 2, 3], [4]]
        assert how.ignore_eos and how.temperature == 1.0
        one = SimpleNamespace(outputs=[SimpleNamespace(token_ids=[7] * how.max_tokens)])
        return [one] * len(prompts)
"""


def test_every_line_generates_all_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    job = json.dumps(dataclasses.asdict(Job("folder", [[1, 2, 3], [4]], 5, 1)))
    child = Child("vllm", [sys.executable, "-m", "tools.bench.vllm_child", job], 60.0)
    try:
        answers = [child.ask() for _ in range(2)]
    finally:
        child.close()
    assert [answer["tokens"] for answer in answers] == [10, 10]

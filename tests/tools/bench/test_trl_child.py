from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools.bench.child import Child
from tools.bench.trl_child import Job, arguments_of, random_rewards

JOB = Job("folder", [[{"role": "user", "content": "?"}]] * 6, prompts=3, samples=8, tokens=48, rows=6,
          threads=1, scratch="scratch")
STAND_INS = {
    "torch": "def set_num_threads(count): assert count == 1\n",
    "datasets": "class Dataset:\n    @staticmethod\n    def from_list(rows): return rows\n",
    "transformers": "class TrainerCallback: pass\n",
    "trl": """
from types import SimpleNamespace
GRPOConfig = lambda **options: SimpleNamespace(**options)
class GRPOTrainer:
    def __init__(self, folder, reward_funcs, args, train_dataset, callbacks):
        assert len(train_dataset) == 6 and train_dataset[0]["prompt"][0]["content"] == "?"
        self.args, self.pace, self.state = args, callbacks[0], SimpleNamespace(num_input_tokens_seen=0)
    def train(self):
        self.pace.on_train_begin(self.args, self.state, None)
        for _ in range(self.args.max_steps):
            self.state.num_input_tokens_seen += 100
            self.pace.on_step_end(self.args, self.state, None)
""",
}


def test_one_step_holds_one_batch_of_completions_of_the_fixed_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def config(**options: Any) -> SimpleNamespace:
        return SimpleNamespace(**options)

    monkeypatch.setitem(sys.modules, "trl", SimpleNamespace(GRPOConfig=config))  # type: ignore[arg-type]
    made = arguments_of(JOB)
    assert made.per_device_train_batch_size * made.gradient_accumulation_steps == 3 * 8
    assert made.max_steps == 2
    assert made.generation_kwargs["min_new_tokens"] == made.max_completion_length == 48
    assert made.beta == 0.0


def test_rewards_have_spread() -> None:
    assert statistics.pstdev(float(reward or 0.0) for reward in random_rewards([""] * 64)) > 0.3


def test_one_step_is_made_for_each_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in STAND_INS.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    job = json.dumps(dataclasses.asdict(JOB))
    child = Child("trl", [sys.executable, "-m", "tools.bench.trl_child", job], 60.0)
    try:
        answers = [child.ask() for _ in range(2)]
    finally:
        child.close()
    assert [answer["tokens"] for answer in answers] == [100, 100]
    assert all(answer["seconds"] >= 0.0 for answer in answers)


@pytest.mark.slow
def test_trl_knows_every_option(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    made = arguments_of(dataclasses.replace(JOB, scratch=str(tmp_path)))
    assert made.generation_batch_size == 3 * 8

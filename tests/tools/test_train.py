"""The command line, as a user meets it: one process for each case."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["model.warmup.steps=0", "canary.prompts=0", "run.quiet=true", "learning.updates=1"]
SMOKE = ["experiment=smoke", *QUICK]
# Partial credit, so that an untrained model has something to learn from at once.
NEAR = ["+reward.judges.near=docs.examples.near_judge.build", "prompts.source=dotted",
        "prompts.dotted_path=docs.examples.doubling.prompts"]


def train(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m tools.train`` with ``where`` as the working directory."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run([sys.executable, "-m", "tools.train", *arguments], cwd=where, text=True,
                          capture_output=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": path})


def test_cfg_prints_the_resolved_options_and_starts_nothing(tmp_path):
    ended = train(tmp_path, "--cfg", "job", *SMOKE, "loss=grpo", "seed=7")
    assert ended.returncode == 0, ended.stderr
    assert "seed: 7" in ended.stdout
    assert "name: clipped" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_dry_run_says_what_the_run_needs_and_starts_nothing(tmp_path):
    ended = train(tmp_path, "--dry-run", *SMOKE, "cluster=ray")
    assert ended.returncode == 0, ended.stderr
    assert "max_response_tokens: 24" in ended.stdout
    assert '"generator-0"' in ended.stdout
    assert "64 training and 8 held-out prompts" in ended.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["loss.tua=0.2"], ["'tua'", "did you mean 'tau'?"]),
        (["schedule.batch_groups=many"], ["schedule.batch_groups", "'many'", "Integer"]),
        (["rollout.samples_per_prompt=1"], ["rollout.samples_per_prompt=1", "loss.baseline=none"]),
        (["model=folder", "model.path=nowhere"], ["model.path='nowhere'", "config.json"]),
        (["run.dir=occupied"], ["run.dir='occupied'", "run.exists=resume"]),
        (["run.dir=occupied/file/run"], ["run.dir='occupied/file/run'", "cannot be written"]),
    ],
    ids=["unknown-key", "wrong-type", "one-sample", "no-model", "existing-folder", "unwritable-folder"],
)
def test_a_mistake_costs_one_sentence(tmp_path, arguments, words):
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "file").write_text("mine")
    ended = train(tmp_path, *SMOKE, *arguments)
    (sentence,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert [word for word in words if word not in sentence] == [], sentence
    assert {path.name for path in tmp_path.rglob("*")} - {".lock"} == {"occupied", "file"}


def test_two_seeds_and_a_restart_from_a_saved_configuration(tmp_path):
    ended = train(tmp_path, "--multirun", *SMOKE, *NEAR, "loss=grpo", "seed=0,1")
    assert ended.returncode == 0, ended.stderr
    summaries = sorted(tmp_path.rglob("summary.json"))
    assert len(summaries) == 2, "every job has a run folder of its own"
    digests = [json.loads(file.read_text())["weights_digest"] for file in summaries]
    assert digests[0] != digests[1], "another seed learns other weights"

    saved = str(summaries[1].parent.relative_to(tmp_path))
    ended = train(tmp_path, "--config-path", saved, "--config-name", "config", "run.dir=again")
    assert ended.returncode == 0, ended.stderr
    again = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert again["weights_digest"] == digests[1]
    assert "name: clipped" in (tmp_path / "again" / "config.yaml").read_text()
    beside = {path.name for path in tmp_path.iterdir()} - {saved.partition("/")[0], "again"}
    assert beside == set(), "a run leaves nothing outside its folder"

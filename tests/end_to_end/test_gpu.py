"""The loop on a GPU: what it must keep of what it keeps on a processor."""

import pytest
import torch

from tests.end_to_end.harness import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
ON_GPU = ("cluster.device=cuda", "evaluation.every=1")


@pytest.mark.parametrize("placement", ["disaggregated", "colocated"])
def test_a_run_on_a_gpu_keeps_its_books(tmp_path, placement):
    summary = train(tmp_path / "run", *ON_GPU, f"cluster.placement={placement}")
    assert summary["updates"] == 3
    assert summary["ledger"]["closes"]
    assert summary["max_staleness_seen"] == 0


def test_half_precision_learns_too(tmp_path):
    half = ("generator.precision=bfloat16", "learning.precision=bfloat16")
    assert train(tmp_path / "run", *ON_GPU, *half)["ledger"]["closes"]


def test_a_resumed_run_goes_on_there(tmp_path):
    train(tmp_path / "run", *ON_GPU, "learning.updates=2", "learning.checkpoint_every=1")
    resumed = train(tmp_path / "run", *ON_GPU, "learning.checkpoint_every=1", "run.exists=resume")
    assert resumed["updates"] == 3

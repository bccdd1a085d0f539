from __future__ import annotations

import pytest
import torch

from tools.bench import packed_rows

OPS = {
    "pad", "unpad", "segment_sum", "segment_mean", "segment_max", "segment_broadcast", "version_mask",
    "policy_gradient",
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_LONGEST", 100), ("_WIDTH", 8), ("_LOSS_TOKENS", 640), ("_CALLS", 1)):
        monkeypatch.setattr(packed_rows, name, value)


def test_every_op_is_set_against_its_best_peer() -> None:
    found = packed_rows.measure(2)
    assert found.keys() == OPS
    for row in found.values():
        peers = {name: row[name]["median"] for name in row if name.endswith("_seconds")}
        ours = peers.pop("ours_seconds")
        copy = peers.pop("copy_seconds", None)
        best = peers.pop(f"{row['best_peer']}_seconds")
        assert row["ratio"] == pytest.approx(ours / best)
        assert all(best <= other for other in peers.values())
        assert copy is None or row["fraction_of_copy"] == pytest.approx(copy / ours)
    assert found["segment_sum"]["error"] < 1e-6
    assert found["policy_gradient"]["error"] < 1e-6


def test_a_side_that_does_other_work_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_rows, "segment_mean", lambda values, cu_seqlens: torch.ones(64))
    with pytest.raises(AssertionError, match="segment_reduce differs from ours"):
        packed_rows.measure(1)

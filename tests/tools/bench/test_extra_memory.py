from __future__ import annotations

from tools.bench.extra_memory import MemoryJob, extra_bytes


def test_logits_count_and_running_sums_do_not() -> None:
    """Sixteen megabytes of float32 logits, in a process of its own."""
    eager, ours = (
        extra_bytes(MemoryJob(side, False, 64, 64, 65536, 1)) for side in ("eager", "perilune")
    )
    assert eager > 16 << 20
    assert ours < eager / 2

from __future__ import annotations

import numpy as np
import pytest

from tools.bench.extra_memory import MemoryJob, extra_bytes, forget_peak, resident_bytes


def test_logits_count_and_running_sums_do_not() -> None:
    """Sixteen megabytes of float32 logits, in a process of its own."""
    eager, ours = (
        extra_bytes(MemoryJob(side, False, 64, 64, 65536, 1)) for side in ("eager", "perilune")
    )
    assert eager > 16 << 20
    assert ours < eager / 2


def test_the_peak_is_forgotten_and_found_again() -> None:
    forget_peak()
    before = resident_bytes("VmHWM")
    held = np.ones(4 << 20)
    assert resident_bytes("VmHWM") - before > held.nbytes * 0.9
    del held
    forget_peak()
    assert resident_bytes("VmHWM") == pytest.approx(before, abs=4 << 20)

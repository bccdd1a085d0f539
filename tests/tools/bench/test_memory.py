from __future__ import annotations

import torch

from tools.bench.memory import peak_bytes


def test_what_is_touched_and_given_back_counts() -> None:
    size = 64 << 20
    found = peak_bytes(lambda: torch.ones(size, dtype=torch.uint8))
    assert 0.9 * size < found < 1.5 * size
    assert peak_bytes(lambda: None) < size / 8

from __future__ import annotations

from pathlib import Path

from tools.bench import trace


def test_a_run_with_and_without_a_trace_is_timed(tmp_path: Path) -> None:
    found = trace.measure(tmp_path, repeats=1, small=True)
    assert found["ratio_trace"]["repeats"] == 1
    assert found["ratio_trace"]["median"] > 0
    assert found["trace_events"] > 20
    assert not (tmp_path / "off" / "trace.json").exists()

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tools import bench_ops
from tools.bench import sample


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_tiny_sizes_go_through_the_harness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ops.json"
    bench_ops.main(["--small", "--repeats", "1", "--threads", "1", "--only", "sample", "--json", str(file)])
    found, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert found["sample_error_perilune"] < 1e-5
    assert f"sample_time_over_eager: {found['sample_time_over_eager']:.4g}\n" in printed
    assert found["machine"]["threads"] == 1
    assert len(found["load_average_after_sample"]) == 3


def test_the_ops_of_the_decoder_have_tiny_sizes(tmp_path: Path) -> None:
    file, ops = tmp_path / "ops.json", ("slot_attention", "rms_norm", "rotary", "gated_silu")
    asked = [word for op in ops for word in ("--only", op)]
    bench_ops.main(["--small", "--repeats", "1", "--threads", "1", *asked, "--json", str(file)])
    found = json.loads(file.read_text())
    for op in ops:
        assert 0.0 < found[f"{op}_error_perilune"] < 2.0**-7


def test_every_row_is_measured_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int, bool]] = []

    def measured(name: str, repeats: int, small: bool) -> dict[str, float]:
        asked.append((name, repeats, small))
        return {name: 1.0}

    monkeypatch.setattr(bench_ops, "measured", measured)
    results = bench_ops.run(bench_ops.options(["--threads", "1", "--repeats", "3"]))
    assert asked == [(name, 3, False) for name in bench_ops.ROWS]
    assert results["sample"] == 1.0


def test_a_row_without_its_module_or_tiny_sizes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_ops.ROWS, "sample", "tools.bench.nothing")
    assert bench_ops.measured("sample", 1, True) == {"sample": "missing: there is no tools.bench.nothing"}
    monkeypatch.setitem(bench_ops.ROWS, "sample", "tools.bench.sample")

    def measure(repeats: int) -> dict[str, int]:
        return {"repeats": repeats}

    monkeypatch.setattr(sample, "measure", measure)
    assert bench_ops.measured("sample", 1, True) == {"sample": "left out: it has no tiny sizes"}
    assert bench_ops.measured("sample", 1, False) == {"repeats": 1}

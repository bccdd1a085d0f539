from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.errors import ConfigError
from engine.ops import extension
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


def test_heads_in_float32_and_torchs_own_op_have_tiny_sizes(tmp_path: Path) -> None:
    file = tmp_path / "ops.json"
    asked = ["--only", "token_logprob_float32", "--only", "linear_cross_entropy"]
    bench_ops.main(["--small", "--repeats", "1", "--threads", "1", *asked, "--json", str(file)])
    found = json.loads(file.read_text())
    assert 0.0 < found["token_logprob_float32_forward_error_perilune"] < 1e-5
    assert len(found["load_average_after_linear_cross_entropy"]) == 3


@pytest.mark.skipif(not extension.available(), reason="the extension is not built")
def test_a_level_holds_for_this_process_and_those_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def measured(name: str, repeats: int, small: bool) -> dict[str, float]:
        seen.append((extension.level(), os.environ["PERILUNE_OPS_LEVEL"]))
        return {}

    before = extension.level()
    monkeypatch.setenv("PERILUNE_OPS_LEVEL", before)
    monkeypatch.setattr(bench_ops, "measured", measured)
    try:
        asked = bench_ops.options(["--threads", "1", "--level", "plain", "--only", "sample"])
        results = bench_ops.run(asked)
    finally:
        extension.force_level(before)
    assert seen == [("plain", "plain")]
    assert results["machine"]["ops"] == "plain"


def test_a_level_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(wanted: str) -> None:
        raise ConfigError("PERILUNE_OPS_LEVEL", wanted, "this processor reaches plain at most")

    monkeypatch.setattr(bench_ops, "measured", lambda *arguments: pytest.fail("measured"))
    monkeypatch.setattr(bench_ops, "force_level", lacking)
    for built, said in ((True, "this processor reaches plain at most"), (False, "--level='avx2': build the ops")):
        monkeypatch.setattr(bench_ops, "available", lambda built=built: built)
        with pytest.raises(SystemExit, match=said):
            bench_ops.main(["--threads", "1", "--level", "avx2"])


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

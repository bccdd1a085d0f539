from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tools import bench_loop
from tools.bench import controller


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_tiny_model_goes_through_the_harness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    only = ["--only", "publish", "--only", "bound", "--only", "generate"]
    bench_loop.main(["--small", "--repeats", "1", "--threads", "1", *only, "--json", str(file)])
    found, printed = json.loads(file.read_text()), capsys.readouterr().out
    for key in ("publish_memcpys", "fraction_of_matmul_bound", "ratio_generate_vs_transformers"):
        assert isinstance(found[key], float)
        assert f"{key}: {found[key]:.4g}\n" in printed
    assert found["machine"]["threads"] == 1
    assert len(found["load_average_after_generate"]) == 3


def test_every_subject_is_measured_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    modules = ("controller", "publish", "channels", "decode_bound", "sampler", "generate", "learner", "update",
               "learners", "trace")
    for module in modules:
        def measure(*_: object, name: str = module) -> dict[str, float]:
            measured.append(name)
            return {name: 1.0}

        monkeypatch.setattr(getattr(bench_loop, module), "measure", measure)
    results = bench_loop.run(bench_loop.options(["--small"]), tmp_path)
    assert measured == list(modules)
    assert results["update"] == 1.0
    measured.clear()
    bench_loop.run(bench_loop.options(["--only", "controller"]), tmp_path)
    assert measured == ["controller"]


def test_a_missing_model_ends_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench_loop.main(["--model", str(tmp_path / "none"), "--only", "publish"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_amounts_are_those_of_the_claims() -> None:
    amounts = bench_loop.Amounts()
    assert amounts.prompts * amounts.samples == 64
    assert (amounts.update_tokens, amounts.sequences, amounts.sequence_tokens) == (48, 64, 64)
    assert amounts.trajectories == 200_000
    assert controller.InstantWorld(amounts.trajectories).trajectories >= 200_000

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import setuptools
import torch

from engine.errors import ConfigError
from engine.ops import extension, head_gradient, logits_logprob, packed_attention, sample, slot_attention, token_logprob

CPU_INFO = Path("/proc/cpuinfo")

PROBE = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")
if "missing" in sys.argv: sys.modules["engine.ops._C"] = None
import torch
from engine.ops import extension, logits_logprob, sample, token_logprob
hidden, weight = torch.ones(2, 32), torch.ones(40, 32)
target, scale = torch.tensor([0, 1]), torch.ones(1)
hidden.requires_grad_()
logprob, entropy, lse = token_logprob.token_logprob(hidden, weight, target, scale)
logprob.sum().backward()
leaf = torch.rand(2, 32, requires_grad=True)
def scored():
    found = token_logprob.token_logprob(leaf, weight * leaf[0].detach(), target, scale)[0]
    return found, torch.autograd.grad(found.sum(), leaf)[0]
with torch.autocast("cpu", torch.bfloat16):
    assert all(torch.equal(*pair) for pair in zip(scored(), torch.autocast("cpu", enabled=False)(scored)()))
token, _ = sample.sample(hidden.detach(), weight, torch.ones(2), target, target)
print(extension.level(), extension.available(), token.tolist())
for name in ("token_logprob", "token_logprob_rows", "logit_gradient", "head_gradient", "logits_logprob",
             "logits_gradient", "sample"):
    print(getattr(torch.ops.perilune, name).default._schema)
"""


def probe(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_reference_and_missing_extension_serve() -> None:
    forced = probe(PERILUNE_OPS="reference")
    assert forced.stdout.startswith("reference False"), forced.stderr
    missing = probe("missing", PERILUNE_OPS="auto")
    assert missing.stdout.count("perilune.ops WARNING the compiled ops are missing") == 1, missing.stderr
    # Defined from Python or from C++, the schemas are the same, and so are the draws.
    schemas = [line for line in forced.stdout.splitlines() if line.startswith("perilune::")]
    names = ("token_logprob", "token_logprob_rows", "logit_gradient", "head_gradient", "logits_logprob",
             "logits_gradient", "sample")
    assert schemas == [str(getattr(torch.ops.perilune, name).default._schema) for name in names]
    target = torch.tensor([0, 1])
    token, _ = sample.sample(torch.ones(2, 32), torch.ones(40, 32), torch.ones(2), target, target)
    assert str(token.tolist()) in forced.stdout


def test_kernels_for_gpus_need_a_torch_for_gpus() -> None:
    assert extension.cuda_available() <= extension.available()
    assert extension.cuda_available() <= (torch.version.cuda is not None)


@pytest.mark.parametrize(
    ("built", "runs"),
    [
        ("sm_90a", {(9, 0)}),
        ("sm_80", {(8, 0), (8, 6), (8, 9)}),
        ("sm_86", {(8, 6), (8, 9)}),
        ("sm_80 compute_80", {(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)}),
        ("sm_100f", {(10, 0), (10, 3)}),
        ("sm_120 sm_90a", {(9, 0), (12, 0)}),
    ],
)
def test_what_a_target_runs_on(built: str, runs: set[tuple[int, int]]) -> None:
    devices = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]
    assert {device for device in devices if extension.runs_on(built, *device)} == runs


@pytest.mark.parametrize(("built", "loaded"), [("sm_90a", False), ("sm_90a sm_80", True), ("", True)])
def test_kernels_for_another_gpu_are_left_alone(
    built: str, loaded: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    imported: list[str] = []
    monkeypatch.setattr(extension, "_available", True)
    monkeypatch.setattr(extension, "_built_for", lambda: built)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: ((9, 0), (8, 6))[index])
    monkeypatch.setattr(extension.importlib, "import_module", imported.append)
    with caplog.at_level("WARNING", "perilune.ops"):
        assert extension._load_cuda() == loaded
    assert imported == (["engine.ops._C_cuda"] if loaded else [])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (0 if loaded else 1)
    assert all("built for sm_90a and GPU 1" in line and "TORCH_CUDA_ARCH_LIST=8.6" in line for line in said)


def test_what_was_built_stands_beside_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModuleSpec("engine.ops._C_cuda", None, origin=str(tmp_path / "_C_cuda.so"))
    monkeypatch.setattr(extension.importlib.util, "find_spec", lambda name: spec)
    assert extension._built_for() == ""
    (tmp_path / "_C_cuda.architectures").write_text("sm_90a\n")
    assert extension._built_for() == "sm_90a"


def test_what_is_built_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setenv("PERILUNE_CUDA", "0")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    built = runpy.run_path(str(Path(__file__).parents[3] / "setup.py"))["cuda_architectures"]
    assert built() == "sm_90a"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a;8.0+PTX")
    assert set(built().split()) == {"sm_90a", "sm_80", "compute_80"}


def test_unknown_choice_is_refused() -> None:
    result = probe(PERILUNE_OPS="refrence")
    assert result.returncode != 0
    assert "PERILUNE_OPS='refrence': set it to auto or reference" in result.stderr


def test_force_level(cpu_level: str) -> None:
    assert extension.level() == cpu_level
    with pytest.raises(ConfigError, match="choose one of plain, avx2, avx512, avx512bf16, amx"):
        extension.force_level("neon")


@pytest.mark.skipif(not CPU_INFO.exists() or not extension.available(), reason="no flags, or no kernels, to read")
def test_the_best_level_uses_the_processors_bfloat16() -> None:
    flags = set(CPU_INFO.read_text().split())
    halves = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_bf16"} <= flags
    best = torch.ops.perilune.best_cpu_level()
    # Whether the tile registers may be used is the operating system's to say.
    assert (best in ("avx512bf16", "amx")) == halves
    assert best != "amx" or {"amx_tile", "amx_bf16"} <= flags


def test_every_op_is_registered() -> None:
    everywhere = (token_logprob._op, head_gradient._logits_op, sample._op, slot_attention._op,
                  logits_logprob._op, logits_logprob._gradient_op)
    on_cpus = (token_logprob._rows_op, head_gradient.head_gradient, packed_attention._op, packed_attention._gradient_op)
    for op in (*everywhere, *on_cpus):
        assert op._schema.name.startswith("perilune::")
        for key, there in (("CPU", extension.available()), ("CUDA", extension.cuda_available() and op in everywhere)):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(op._schema.name, key) == there

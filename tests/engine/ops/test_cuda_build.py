"""The kernels for GPUs compile without a GPU: no register spilled, and bindings that fit the torch at hand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parents[3]
SOURCES = sorted(path.stem for path in (ROOT / "csrc/cuda").glob("*.cu"))
BINDINGS = sorted(path.stem for path in (ROOT / "csrc/bindings").glob("cuda*.cpp"))
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc: the CUDA toolkit is not installed")
# What torch adds for every extension: operators that kernels may not rely on.
STRICT = [f"-D__CUDA_NO_{what}__" for what in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS")]


def output_of(command: list[str]) -> str:
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.mark.parametrize("source", SOURCES)
def test_kernels_spill_no_register(source: str, tmp_path: Path) -> None:
    target = ["-O3", "-std=c++17", "-gencode", "arch=compute_90a,code=sm_90a", "-Xptxas", "-v"]
    said = output_of([str(NVCC), "-c", f"csrc/cuda/{source}.cu", *target, *STRICT, "-o", str(tmp_path / "kernels.o")])
    spilled = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert spilled, said
    assert {int(count) for pair in spilled for count in pair} == {0}, said
    assert "warning" not in said


@pytest.mark.parametrize("binding", BINDINGS)
def test_bindings_fit_the_torch_at_hand(binding: str, tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    # A torch for CPUs lacks one header of its build options; with it, all others are there.
    options = tmp_path / "c10/cuda/impl/cuda_cmake_macros.h"
    options.parent.mkdir(parents=True)
    options.write_text("#pragma once\n")
    homes = Path(str(NVCC)).resolve().parent.parent, Path("/usr/local/cuda")
    toolkit = [str(home / "include") for home in homes if (home / "include/cuda_runtime_api.h").exists()]
    folders = [*include_paths(), sysconfig.get_paths()["include"], *toolkit]
    if torch.version.cuda is None:
        folders.append(str(tmp_path))
    searched = [word for folder in folders for word in ("-isystem", folder)]
    strict = ["-std=c++20", "-fsyntax-only", "-Wall", "-Werror"]
    assert "error" not in output_of([compiler, *strict, *searched, f"csrc/bindings/{binding}.cpp"])

"""Install Perilune; where a C++ compiler is at hand, build its compiled ops as well.

``PERILUNE_CUDA`` says whether the kernels for GPUs are built too: ``auto`` (default) where torch was built for CUDA
and nvcc is at hand, ``1`` always (what is missing is an error), ``0`` never. They are built for sm_90a, or for what
``TORCH_CUDA_ARCH_LIST`` names.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from glob import glob
from pathlib import Path
from typing import Any

from setuptools import find_namespace_packages, find_packages, setup

HERE = Path(__file__).parent
CUDA_MODULE = "engine.ops._C_cuda"
HOPPER = "arch=compute_90a,code=sm_90a"
INSTALL = [
    "torch>=2.11,<2.14",
    "transformers>=5.16,<5.24",
    "ray[default]>=2.59",
    "hydra-core>=1.3,<1.4",
    "omegaconf>=2.3,<2.4",
    "msgpack",
    "numpy",
    "tensorboard",
    "xxhash",
    "rich",
    "reasoning-gym",
    "math-verify",
    "safetensors",
    "tokenizers",
]
EXTRAS = {
    "packaged": ["gguf", "accelerate"],
    "lora": ["peft"],
    "data": ["pyarrow"],
    "bench": ["trl==1.16.*"],
    "gpu": ["cupy-cuda13x"],
    "nccl": ["cupy-cuda13x"],
    "vllm": ["vllm"],
    "wandb": ["wandb"],
    "test": ["pytest", "hypothesis", "ruff", "mypy", "import-linter"],
}


def missing_for_extension() -> str:
    """What the compiled ops lack here; empty when they can be built."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler called {compiler} (set CXX to another)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "no Python.h (install the development files of this Python)"
    try:
        import torch.utils.cpp_extension  # noqa: F401
    except ImportError as error:
        return f"no torch in the building environment ({error}); use pip install --no-build-isolation"
    return ""


def missing_for_cuda() -> str:
    """What the kernels for GPUs lack here; empty when they can be built."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if CUDA_HOME is None or not (Path(CUDA_HOME) / "bin" / "nvcc").exists():
        return "no nvcc (set CUDA_HOME to where the CUDA toolkit lies)"
    return ""


def cuda_extensions() -> list[Any]:
    """``engine.ops._C_cuda`` where it is wanted and can be built."""
    wanted = os.environ.get("PERILUNE_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"PERILUNE_CUDA={wanted!r}: set it to auto, 0 or 1, or leave it unset")
    reason = "PERILUNE_CUDA=0" if wanted == "0" else missing_for_cuda()
    if reason and wanted == "1":
        raise SystemExit(f"PERILUNE_CUDA=1: {reason}")
    if reason:
        print(f"perilune: {reason}: no kernels for GPUs", file=sys.stderr)
        return []
    from torch.utils.cpp_extension import CUDAExtension

    sources = sorted(glob("csrc/cuda/*.cu", root_dir=HERE) + glob("csrc/bindings/cuda*.cpp", root_dir=HERE))
    hopper = [] if os.environ.get("TORCH_CUDA_ARCH_LIST") else ["-gencode", HOPPER]
    module = CUDAExtension(
        CUDA_MODULE,
        sources,
        depends=sorted(glob("csrc/*/*.h", root_dir=HERE) + glob("csrc/cuda/*.cuh", root_dir=HERE)),
        extra_compile_args={"cxx": ["-O3", "-fvisibility=hidden", "-g0"], "nvcc": ["-O3", *hopper]},
    )
    return [module]


def cuda_architectures() -> str:
    """nvcc's names of what the kernels for GPUs are compiled for, such as sm_90a."""
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return HOPPER.rpartition("=")[2]
    from torch.utils.cpp_extension import _get_cuda_arch_flags

    return " ".join(re.findall(r",code=(\w+)", " ".join(_get_cuda_arch_flags())))


def builder() -> Any:
    """torch's ``build_ext``, which also writes what the kernels for GPUs are compiled for beside them."""
    from torch.utils.cpp_extension import BuildExtension

    plain: Any = BuildExtension.with_options(use_ninja=shutil.which("ninja") is not None)

    class Build(plain):  # type: ignore[misc]
        def run(self) -> None:
            super().run()
            for module in self.extensions:
                if module.name == CUDA_MODULE:
                    beside = Path(self.get_ext_fullpath(module.name)).with_name("_C_cuda.architectures")
                    beside.write_text(cuda_architectures() + "\n", encoding="utf-8")

    return Build


def extension() -> dict[str, Any]:
    """Keyword arguments of ``setup`` that build ``engine.ops._C`` and ``engine.ops._C_cuda``, or none."""
    reason = missing_for_extension()
    if reason:
        print(f"perilune: {reason}: no compiled ops, the readable references serve", file=sys.stderr)
        return {}
    from torch.utils.cpp_extension import CppExtension

    bindings = set(glob("csrc/bindings/*.cpp", root_dir=HERE)) - set(glob("csrc/bindings/cuda*.cpp", root_dir=HERE))
    sources = sorted([*glob("csrc/cpu/*.cpp", root_dir=HERE), *bindings])
    # No vector type crosses a library border (psabi); GCC's own AVX-512 headers trip the other warnings.
    quiet = ["-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-uninitialized"]
    flags = [
        "-O3",
        "-fopenmp",
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fvisibility=hidden",
        "-g0",
        *quiet,
    ]
    module = CppExtension(
        "engine.ops._C",
        sources,
        depends=sorted(glob("csrc/*/*.h", root_dir=HERE)),
        extra_compile_args=flags,
        extra_link_args=["-fopenmp"],
    )
    return {"ext_modules": [module, *cuda_extensions()], "cmdclass": {"build_ext": builder()}}


def long_description() -> str:
    """The README, once there is one."""
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="perilune",
    version="0.1.0",
    description="An actor-model, asynchronous reinforcement-learning engine for language models",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["engine", "engine.*", "actors", "actors.*", "tools", "tools.*"]),
        *find_namespace_packages(include=["configs", "configs.*"]),
    ],
    package_data={"": ["*.yaml"]},
    install_requires=INSTALL,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["perilune = tools.perilune:main"]},
    **extension(),
)

"""Every implementation that this machine can run: the reference, each instruction level, the kernels of a GPU.

On a GPU a test is the same test: tensors that it makes lie there, for the default device is set to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from engine.ops import extension


def _level(name: str) -> Any:
    """A parameter of a test; skipped, with the reason, where this machine can not run it."""
    missing = ""
    if not extension.available():
        missing = "the extension is not built"
    elif name == "cuda":
        missing = "" if extension.cuda_available() and torch.cuda.is_available() else "no GPU, or no kernels for it"
    elif extension.LEVELS.index(name) > extension.LEVELS.index(torch.ops.perilune.best_cpu_level()):
        missing = f"this processor has no {name}"
    return pytest.param(name, marks=pytest.mark.skip(missing) if missing else ())


_LEVELS = [_level(name) for name in extension.LEVELS]
_EVERYWHERE = [*_LEVELS, _level("cuda")]


@contextmanager
def _running(name: str) -> Iterator[str]:
    if name == "cuda":
        with torch.device("cuda"):
            yield name
        return
    before = extension.level()
    extension.force_level(name)
    yield name
    extension.force_level(before)


@pytest.fixture(autouse=True)
def _seed_and_one_thread() -> Iterator[None]:
    torch.manual_seed(11)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=_LEVELS)
def cpu_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the compiled ops at one instruction level of the processor."""
    with _running(request.param) as name:
        yield name


@pytest.fixture(params=_EVERYWHERE)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the compiled ops at one instruction level, then on the GPU."""
    with _running(request.param) as name:
        yield name


@pytest.fixture(params=["reference", *_EVERYWHERE])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, then each instruction level, then the GPU."""
    if request.param == "reference":
        yield "reference"
        return
    with _running(request.param) as name:
        yield name


@pytest.fixture(params=["reference", *_LEVELS])
def cpu_implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, then each instruction level; for tests that say themselves where their tensors lie."""
    if request.param == "reference":
        yield "reference"
        return
    with _running(request.param) as name:
        yield name


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two compute threads whatever the environment says."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nobody has written yet holds NaN or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    # The products of a GPU's library are refused otherwise.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]

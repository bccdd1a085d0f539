"""Every implementation that this machine can run: the reference, each instruction level, the kernels of a GPU.

On a GPU a test is the same test: tensors that it makes lie there, for the default device is set to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from engine.ops import extension


def _levels() -> list[str]:
    if not extension.available():
        return []
    return list(extension.LEVELS[: extension.LEVELS.index(torch.ops.perilune.best_cpu_level()) + 1])


def _everywhere() -> list[str]:
    gpu = extension.cuda_available() and torch.cuda.is_available()
    return [*_levels(), "cuda"] if gpu else _levels()


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


_MISSING = pytest.param("", marks=pytest.mark.skip("the extension is not built"))


@pytest.fixture(autouse=True)
def _seed_and_one_thread() -> Iterator[None]:
    torch.manual_seed(11)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=_levels() or [_MISSING])
def cpu_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the compiled ops at one instruction level of the processor."""
    with _running(request.param) as name:
        yield name


@pytest.fixture(params=_everywhere() or [_MISSING])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the compiled ops at one instruction level, then on the GPU."""
    with _running(request.param) as name:
        yield name


@pytest.fixture(params=["reference", *_everywhere()])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, then each instruction level, then the GPU."""
    if request.param == "reference":
        yield "reference"
        return
    with _running(request.param) as name:
        yield name


@pytest.fixture(params=["reference", *_levels()])
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
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]

"""Every implementation that this machine can run: the reference and each instruction level."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from engine.ops import extension


def _levels() -> list[str]:
    if not extension.available():
        return []
    return list(extension.LEVELS[: extension.LEVELS.index(torch.ops.perilune.best_cpu_level()) + 1])


@pytest.fixture(autouse=True)
def _seed_and_one_thread() -> Iterator[None]:
    torch.manual_seed(11)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(
    params=_levels() or [pytest.param("", marks=pytest.mark.skip("the extension is not built"))]
)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the compiled ops at one instruction level."""
    before = extension.level()
    extension.force_level(request.param)
    yield request.param
    extension.force_level(before)


@pytest.fixture(params=["reference", *_levels()])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, then each instruction level."""
    if request.param == "reference":
        yield "reference"
        return
    before = extension.level()
    extension.force_level(request.param)
    yield request.param
    extension.force_level(before)


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

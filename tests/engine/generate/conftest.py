from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.small_models import tiny_network


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def network() -> Any:
    """A tiny Llama; nobody may change its weights."""
    return tiny_network("llama")


@pytest.fixture(scope="session")
def networks() -> list[Any]:
    """Three tiny Llamas, as versions 0.0, 0.1 and 0.2."""
    return [tiny_network("llama", seed=seed) for seed in range(3)]

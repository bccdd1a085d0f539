from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tools.bench.subject import SMALL, Subject, small_model


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A tiny model and little work."""
    logging.getLogger("engine.prompts").setLevel(logging.ERROR)
    return Subject(small_model(Path(tmp_path_factory.mktemp("model"))), SMALL, 1)

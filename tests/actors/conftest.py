"""A very small policy and its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from actors.launch import compose
from engine.config.run import RunConfig
from engine.models.policy import published_tensors, save_policy, scratch_network
from engine.preflight import Checked, check
from engine.run_folder import RunFolder

SMALL = (
    "experiment=smoke", "run.quiet=true", "model.warmup.steps=0", "reward.length.weight=0.5",
    "reward.workers=0", "learning.optimiser.learning_rate=0.003", "evaluation.every=0",
    "prompts.num_heldout=4", "canary.prompts=2",
)


@pytest.fixture(scope="session")
def configured() -> Callable[..., RunConfig]:
    """The smoke configuration with overrides."""
    return lambda *overrides: compose([*SMALL, *overrides])[0]


@pytest.fixture(scope="session")
def config(configured) -> RunConfig:
    return configured()


@pytest.fixture(scope="session")
def checked(config) -> Checked:
    return check(config)


@pytest.fixture(scope="session")
def policy(config, tmp_path_factory) -> str:
    """Folder of a policy made from nothing."""
    network, tokenizer = scratch_network(config.model.scratch, seed=0)
    folder = tmp_path_factory.mktemp("policy")
    save_policy(network, published_tensors(network), tokenizer, folder)
    return str(folder)


@pytest.fixture
def run_folder(config, tmp_path) -> Iterator[RunFolder]:
    folder = RunFolder.open(replace(config.run, dir=str(tmp_path / "folder")))
    yield folder
    folder.close()

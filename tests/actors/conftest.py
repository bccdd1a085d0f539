"""A very small policy, its configuration, and a whole loop in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.cluster import SerialCluster
from actors.driver import Driver
from actors.launch import compose
from actors.observer import Observer
from actors.supervisor import Restarts, Supervisor
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
def loop(configured, checked, policy, tmp_path) -> Iterator[Callable[..., Driver]]:
    """Build a driver over actors in this process; everything is closed after the test."""
    opened: list[tuple[Driver, SerialCluster, RunFolder]] = []

    def build(*overrides: str, should_stop: Callable[[], bool] = lambda: False,
              clock: Callable[[], float] = lambda: 0.0) -> Driver:
        config = configured(f"run.dir={tmp_path / 'run'}", *overrides)
        folder = RunFolder.open(replace(config.run))
        cluster = SerialCluster()
        observer = Observer(config, folder)
        restarts = Restarts(config.cluster.max_restarts, config.cluster.restart_window_s, clock)
        supervisor = Supervisor(cluster, config, policy, folder.run_id, str(folder.rollouts), restarts)
        supervisor.start_all()
        driver = Driver(config, cluster, supervisor, folder, checked.prompts, checked.tokenizer, observer,
                        should_stop)
        driver.write_checkpoint = lambda: None
        opened.append((driver, cluster, folder))
        return driver

    yield build
    for driver, cluster, folder in opened:
        driver.close()
        driver.observer.close()
        cluster.close()
        folder.close()


@pytest.fixture
def answer() -> Callable[..., Any]:
    """Call an actor of a driver's cluster and wait."""
    def ask(driver: Driver, name: str, method: str, *arguments: Any) -> Any:
        pending = driver.cluster.call(name, method, *arguments)
        assert driver.cluster.wait([pending], 1.0) is pending
        return driver.cluster.result(pending)

    return ask


@pytest.fixture
def run_folder(config, tmp_path) -> Iterator[RunFolder]:
    folder = RunFolder.open(replace(config.run, dir=str(tmp_path / "folder")))
    yield folder
    folder.close()


def published(driver: Driver, folder: Path | None = None) -> None:
    """The first version stands in the channel."""
    driver.training.manifest = driver.cluster.result(driver.cluster.call("learner", "publish"))

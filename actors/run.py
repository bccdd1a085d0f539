"""One run from its checks to its summary, over as many lives as the deaths of its actors cost."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from actors import snapshot
from actors.cluster import ask
from actors.driver import Driver
from actors.evaluator import KEPT
from actors.first_weights import first_weights
from actors.learner_group import with_learners
from actors.live_metrics import LiveMetrics
from actors.observer import Observer
from actors.ray_cluster import open_cluster
from actors.stalls import Thresholds, WatchedCluster
from actors.status import COMPLETE, CUT_OFF, STOPPED, Status, picture
from actors.status import FILE as STATUS_FILE
from actors.supervisor import Restarts, Supervisor, first_answer_s
from engine.config.cluster import ClusterKind
from engine.config.run import Only, RunConfig
from engine.errors import ActorError, CheckpointError, ConfigError
from engine.preflight import Checked, check, needs
from engine.run_folder import RunFolder
from engine.weights.channel_folder import clean_leftovers


class StopSignal:
    """Remembers that SIGINT or SIGTERM arrived; the second one ends at once.

    So does the first while there is nothing yet that could be saved.
    """

    def __init__(self) -> None:
        self.asked = False
        self.worth_saving = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._heard)
        return self

    def _heard(self, number: int, _: FrameType | None) -> None:
        if self.asked or not self.worth_saving:
            raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}")
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def run(config: RunConfig, config_text: str) -> dict[str, Any]:
    """Train; returns what ``summary.json`` holds.

    Args:
        config: of the run.
        config_text: its resolved YAML, written to the run folder.

    Raises:
        PeriluneError: a refusal before anything starts, or what ended the run.
    """
    checked = check(config)
    folder = RunFolder.open(config.run)
    try:
        if not folder.resumed:
            folder.write_config(config_text)
        elif (summary := _complete(config, folder)) is not None:
            return summary
        # What an earlier life told before it was stopped says nothing of one that may be cut off.
        folder.summary_file.unlink(missing_ok=True)
        with StopSignal() as stop:
            return _live(config, checked, folder, stop)
    finally:
        folder.close()


def _complete(config: RunConfig, folder: RunFolder) -> dict[str, Any] | None:
    """The summary of a run whose earlier life reached its end."""
    if config.train.only is Only.rollout or not folder.summary_file.exists():
        return None
    summary: dict[str, Any] = json.loads(folder.summary_file.read_text())
    limit = config.learning.max_seconds
    if summary["updates"] < config.learning.updates and not (limit and summary["train_seconds"] >= limit):
        return None
    if not config.run.quiet:
        print(f"{folder.path} is complete: {summary['updates']} updates", flush=True)
    return summary


def _live(config: RunConfig, checked: Checked, folder: RunFolder, stop: StopSignal) -> dict[str, Any]:
    """Lives of one run: each ends in a summary, or in a death that the newest checkpoint heals."""
    restarts = Restarts(config.cluster.max_restarts, config.cluster.restart_window_s, time.monotonic)
    resumed = folder.resumed
    while True:
        try:
            return life(config, checked, folder, stop, restarts, resumed)
        except ActorError as error:
            if stop.asked or not error.actor.startswith(("learner", "replay")):
                raise
            restarts.allow(error)
            print(f"{error}; going on from the newest checkpoint", flush=True)
            resumed = True


def life(config: RunConfig, checked: Checked, folder: RunFolder, stop: StopSignal, restarts: Restarts,
         resumed: bool, make: Callable[..., Driver] = Driver) -> dict[str, Any]:
    """One life of a run: from its actors' start to its summary, or to what ends it.

    Raises:
        PeriluneError: what ended it.
    """
    observer = Observer(config, folder)
    for sentence in checked.said:
        observer.say(sentence)
    model = str(first_weights(config, checked, folder, observer.say))
    clean_leftovers(Path(config.weights.folder))
    cluster, status = _watched(config, folder, observer)
    driver, end = None, CUT_OFF
    try:
        dumped = config.run.dump_rollouts or config.train.only is Only.rollout
        written = {"dumps": str(folder.rollouts) if dumped else "",
                   "kept": str(folder.path / KEPT) if config.evaluation.deferred else ""}
        supervisor = Supervisor(cluster, config, model, folder.run_id, written, restarts)
        supervisor.start_all()
        driver = make(config, cluster, supervisor, folder, checked.prompts, checked.tokenizer, observer,
                      lambda: stop.asked)
        opened = status.driver = driver
        status.cluster.picture = lambda: picture(opened)
        driver.write_checkpoint = lambda: _checkpoint(opened, folder)
        stop.worth_saving = True
        _begin(driver, folder, resumed)
        driver.run()
        summary = _end(driver, folder, restarts)
        end = STOPPED if driver.stopped else COMPLETE
        return summary
    finally:
        stop.worth_saving = False
        try:
            status.write(end)
            if driver is not None:
                driver.close()
            observer.close()
        finally:
            cluster.close()


def _watched(config: RunConfig, folder: RunFolder, observer: Observer) -> tuple[WatchedCluster, Status]:
    """The cluster of a run under watch, and its status."""
    over_ray = config.cluster.kind is ClusterKind.ray
    deadline_s = config.cluster.call_deadline_s
    warning_s, start_s = config.cluster.stall_warning_s or deadline_s, first_answer_s(config, "generator")
    limits = Thresholds(warning_s, deadline_s, start_s) if over_ray else Thresholds()
    cluster = with_learners(open_cluster(config.cluster, folder.run_id), config)
    watch = WatchedCluster(cluster, limits, folder.path / "stalls", observer.say)
    export = LiveMetrics(folder.path.name).show if over_ray else lambda _: None
    status = Status(folder.path / STATUS_FILE, watch, config.learning.updates, export)
    watch.refresh = status.refresh
    return watch, status


def _checkpoint(driver: Driver, folder: RunFolder) -> None:
    began = time.monotonic()
    written = snapshot.save(driver, folder.checkpoints)
    driver.observer.checkpointed(written.name, time.monotonic() - began)


def _begin(driver: Driver, folder: RunFolder, resumed: bool) -> None:
    """Restore or start afresh, publish, look at the first version, and let the canary sing."""
    deadline_s = driver.config.cluster.call_deadline_s
    if resumed:
        try:
            snapshot.restore(driver, folder.checkpoints)
        except CheckpointError as error:
            if any(not entry.name.startswith(".") for entry in folder.checkpoints.iterdir()):
                raise
            driver.observer.say(f"nothing to resume ({error}): starting from the beginning")
            resumed = False
            snapshot.forget(driver)
    driver.training.manifest = ask(driver.cluster, "learner", "publish", deadline_s=deadline_s)
    if not resumed:
        driver.evaluator.canary(driver.training.manifest)
        driver.evaluator.finish(driver.controller.version, driver.training.manifest)
    driver.observer.begin()


def _end(driver: Driver, folder: RunFolder, restarts: Restarts) -> dict[str, Any]:
    config, observer = driver.config, driver.observer
    deadline_s = config.cluster.call_deadline_s
    version = driver.controller.version
    observer.end()
    if driver.stopped:
        observer.say(f"stopped at update {version.updates}; go on with run.exists=resume")
    else:
        driver.evaluator.catch_up(folder.path / KEPT, version)
        driver.evaluator.finish(version, driver.training.manifest)
        driver.ledger.end()
        driver.ledger.check()
    ask(driver.cluster, "learner", "save_model", folder.model, deadline_s=deadline_s)
    digest = ask(driver.cluster, "learner", "digest", deadline_s=deadline_s)
    summary = observer.summary(version.updates, driver.ledger.counts(), digest) | {
        "restarts": restarts.total, "prompts_digest": driver.prompts.digest()}
    folder.write_summary(summary)
    observer.table(summary)
    return summary


def dry_run(config: RunConfig, config_text: str, say: Callable[[str], None] = print) -> None:
    """Print the resolved configuration, what the run needs and the processes it would start."""
    checked = check(config)
    if config.run.dir == "":
        raise ConfigError("run.dir", config.run.dir, "give a folder")
    say(config_text)
    say(json.dumps(needs(config, checked.architecture), indent=2))
    say(f"{len(checked.prompts.train)} training and {len(checked.prompts.heldout)} held-out prompts")
    for sentence in checked.said:
        say(sentence)

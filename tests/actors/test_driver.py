"""The loop itself: events in, commands carried out, answers and deaths as they come."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest

import actors.driver
from actors.cluster import SerialCluster, ask
from actors.controller import Controller
from actors.driver import Driver
from actors.generator import Generator
from actors.judge import Judge
from actors.observer import Observer
from actors.reenactment import read_arrivals
from actors.supervisor import Restarts, Supervisor
from engine.errors import ActorError
from engine.records import arrival
from engine.records import event as ev
from engine.run_folder import RunFolder
from tests.end_to_end.harness import ASYNC

MANY = 100_000


@pytest.fixture
def loop(configured, checked, policy, tmp_path) -> Iterator[Callable[..., Driver]]:
    """Build a driver over actors in this process; everything is closed after the test."""
    opened: list[tuple[Driver, SerialCluster, RunFolder]] = []

    def build(*overrides: str, should_stop: Callable[[], bool] = lambda: False,
              clock: Callable[[], float] = lambda: 0.0) -> Driver:
        config = configured(f"run.dir={tmp_path / 'run'}", *overrides)
        folder = RunFolder.open(config.run)
        cluster = SerialCluster()
        observer = Observer(config, folder)
        restarts = Restarts(config.cluster.max_restarts, config.cluster.restart_window_s, clock)
        supervisor = Supervisor(cluster, config, policy, folder.run_id, {"dumps": str(folder.rollouts)}, restarts)
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


def published(driver: Driver) -> None:
    """The first version stands in the channel."""
    driver.training.manifest = ask(driver.cluster, "learner", "publish", deadline_s=60.0)


def events(driver):
    """What reached the controller, as the run folder has it."""
    driver.arrivals.flush()
    return [e for e in read_arrivals(Path(driver.arrivals.name)) if isinstance(e, get_args(ev.Event))]


def test_a_run_makes_its_updates_and_its_inbox_reproduces_it(loop):
    driver = loop(*ASYNC, "learning.updates=2", "schedule.batch_groups=2")
    published(driver)
    driver.run()
    assert driver.over
    assert driver.controller.version.updates == 2
    driver.ledger.check()
    again = Controller(driver.config.schedule, samples_per_prompt=4, updates=2, lease_s=MANY,
                       max_judge_failures=1)
    for event in events(driver):
        again.step(event)
    assert again.finished
    assert again.state_dict() == driver.controller.state_dict()


def test_a_run_whose_time_is_up_ends_with_its_update(loop):
    driver = loop(*ASYNC, "learning.updates=50", "schedule.batch_groups=2", "learning.max_seconds=0.000001")
    published(driver)
    driver.run()
    assert (driver.over, driver.stopped, driver.controller.version.updates) == (True, False, 1)
    driver.ledger.end()
    driver.ledger.check()


def test_waiting_for_nothing_is_an_error(loop):
    with pytest.raises(ActorError, match="nothing is under way"):
        loop()._turn()


def test_who_does_not_answer_is_replaced_once(loop, monkeypatch):
    """Two questions to one judge are overdue; its successor is asked both again and is left alone."""
    driver = loop("cluster.max_restarts=9")
    answers = []
    for _ in range(2):
        driver.later(answers.append, "judge#1", "metrics")
    wait = driver.cluster.wait
    monkeypatch.setattr(driver.cluster, "wait", lambda pending, s: None if s <= actors.driver.POLL_S
                        else wait(pending, s))
    for call in driver._calls:
        call.deadline = 0.0
    for _ in range(3):
        if driver._calls:
            driver._turn()
    assert driver.supervisor.judge == "judge#2"
    assert driver.observer.totals["restarts"] == 1
    assert answers == []


def test_what_is_there_already_is_not_overdue(loop):
    """Replacing an actor blocks the driver, and meanwhile others answer."""
    driver = loop()
    answers = []
    driver.later(answers.append, "learner", "metrics")
    driver._calls[0].deadline = 0.0
    driver._turn()
    assert len(answers) == 1


def test_the_death_of_the_learner_ends_this_life(loop):
    with pytest.raises(ActorError, match="actor learner"):
        loop().died(ActorError("learner", "update", "its process died"))


@pytest.mark.parametrize(("actor", "method"), [(Generator, "advance"), (Judge, "judge")])
@pytest.mark.parametrize("schedule", [(), ASYNC], ids=["sync", "async"])
def test_a_run_survives_deaths(loop, monkeypatch, actor, method, schedule):
    driver = loop(*schedule, "learning.updates=2")
    published(driver)
    count = 0
    honest = getattr(actor, method)

    def dying(self, *arguments):
        nonlocal count
        count += 1
        if count == 3:
            name = driver.supervisor.judge if actor is Judge else self._name
            raise ActorError(name, method, "its process died")
        return honest(self, *arguments)

    monkeypatch.setattr(actor, method, dying)
    driver.run()
    assert driver.controller.version.updates == 2
    assert driver.observer.totals["restarts"] == 1
    driver.ledger.end()
    driver.ledger.check()


@pytest.mark.parametrize("slow_updates", [1, 9], ids=["late", "never"])
def test_a_run_goes_on_while_a_successor_comes_up(loop, monkeypatch, slow_updates):
    """Whose first answer takes as long as an update, or longer than the run."""
    driver = loop(*ASYNC, "learning.updates=3", "generator.num_generators=2")
    published(driver)
    wait, advance, count = driver.cluster.wait, Generator.advance, 0

    def dying(self, order):
        nonlocal count
        count += self._name == "generator-1#1"
        if self._name == "generator-1#1" and count == 3:
            raise ActorError(self._name, "advance", "its process died")
        return advance(self, order)

    def slow(pending, timeout_s):
        up = driver.controller.version.updates >= slow_updates
        return wait([one for one in pending if up or one.actor != "generator-1#2"], timeout_s)

    monkeypatch.setattr(Generator, "advance", dying)
    monkeypatch.setattr(driver.cluster, "wait", slow)
    driver.run()
    seen = events(driver)
    joined = [place for place, event in enumerate(seen) if isinstance(event, ev.GeneratorJoined)]
    updated = next(place for place, event in enumerate(seen) if isinstance(event, ev.Updated))
    assert driver.controller.version.updates == 3
    assert len(joined) == (3 if slow_updates == 1 else 2)
    assert (joined[-1] > updated) is (slow_updates == 1)
    driver.ledger.end()
    driver.ledger.check()


def test_deaths_beyond_the_limit_end_the_run(loop, monkeypatch):
    driver = loop("cluster.max_restarts=2")
    published(driver)

    def dying(self, order):
        raise ActorError(self._name, "advance", "its process died")

    monkeypatch.setattr(Generator, "advance", dying)
    with pytest.raises(ActorError, match="2 restarts within 300 s were used up"):
        driver.run()


def test_a_wish_to_stop_ends_with_a_checkpoint(loop):
    written = []
    driver = loop(*ASYNC, should_stop=lambda: driver.controller.version.updates >= 1)
    driver.write_checkpoint = lambda: written.append(driver.controller.version.updates)
    published(driver)
    driver.run()
    assert driver.stopped
    assert written
    assert driver.controller.version.updates == written[-1] < 3


def test_work_that_does_not_come_to_rest_is_not_waited_for(loop, monkeypatch):
    monkeypatch.setattr(actors.driver, "STOP_GRACE_S", -1.0)
    driver = loop(*ASYNC, should_stop=lambda: True)
    driver.heed_stop()
    with pytest.raises(ActorError, match="did not come to rest"):
        driver.heed_stop()


def test_waiting_is_cut_short_by_a_wish_to_stop(loop):
    driver = loop(should_stop=lambda: True)
    driver.later(lambda _: None, "evaluator#1", "metrics")
    driver.wait_for("evaluator", unless_stopped=True)
    assert len(driver._calls) == 1
    driver.wait_for("evaluator")
    assert driver._calls == []


def test_what_arrives_is_written_down_in_the_order_in_which_it_did(loop):
    """Answers by their place among the open calls, and deaths before what follows from them."""
    driver = loop("cluster.max_restarts=9")
    answers = []
    for name in ("learner", "judge#1", "evaluator#1"):
        driver.later(answers.append, name, "metrics")
    driver._turn()
    driver.died(ActorError("judge#1", "metrics", "its process died"))
    driver.died(ActorError("judge#1", "metrics", "told once more"))
    driver._turn()
    assert len(answers) == 2
    driver.arrivals.flush()
    entries = [e for e in read_arrivals(Path(driver.arrivals.name)) if not isinstance(e, ev.Ticked)]
    assert entries == [arrival.Answered(0), arrival.Died("judge#1"), arrival.Answered(0)]

"""Who may use shared devices: nobody learns before everybody sleeps, nobody wakes before the learner is done."""

import pytest

from actors.turns import Turns
from engine.config.cluster import Placement
from tests.actors.fake_driver import changed, fake_driver


def turns_of(config, placement):
    driver = fake_driver(changed(config, {"cluster.placement": placement}))
    driver.supervisor.generators, driver.supervisor.evaluator = ["generator-0#1", "generator-1#1"], "evaluator#1"
    return driver, Turns(driver)


@pytest.fixture
def shared(config):
    return turns_of(config, Placement.colocated)


def test_with_devices_of_their_own_nobody_waits(config):
    driver, turns = turns_of(config, Placement.disaggregated)
    began = []
    turns.to_learner(lambda: began.append(True))
    assert (began, driver.asked, turns.learning) == ([True], [], False)
    turns.to_generators()
    driver.generation.wake.assert_not_called()
    assert turns.metrics() == {}


def test_the_learner_waits_until_everybody_sleeps(shared):
    driver, turns = shared
    began = []
    turns.to_learner(lambda: began.append(True))
    assert [(one.actor, one.method) for one in driver.asked] == [
        ("evaluator#1", "sleep"), ("generator-0#1", "sleep"), ("generator-1#1", "sleep"),
    ]
    for one in driver.asked:
        assert (began, turns.learning) == ([], True)
        one.answer(None)
    assert began == [True]
    driver.generation.wake.assert_not_called()
    turns.to_generators()
    driver.generation.wake.assert_called_once_with()
    assert not turns.learning
    turns.woke(0.25)
    turns.woke(0.0)
    found = turns.metrics()
    assert found["hybrid/wake_seconds"] == 0.25
    assert found["hybrid/sleep_seconds"] > 0
    assert turns.metrics()["hybrid/wake_seconds"] == 0


def test_the_dead_are_not_waited_for_and_who_comes_meanwhile_waits(shared):
    driver, turns = shared
    began = []
    turns.to_learner(lambda: began.append(True))
    for one in driver.asked[:2]:
        one.answer(None)
    turns.welcome("generator-1#2")
    turns.welcome("generator-2#2")
    turns.lost("generator-2#2")
    turns.lost("generator-1#1")
    turns.lost("judge#1")
    assert began == [True], "once"
    driver.generation.welcome.assert_not_called()
    turns.to_generators()
    driver.generation.welcome.assert_called_once_with("generator-1#2")
    turns.welcome("generator-0#2")
    assert driver.generation.welcome.call_count == 2

"""Who takes the place of whom, and that nobody is kept waiting while a successor comes up."""

import pytest

from actors.succession import Succession
from engine.config.rollout import GeneratorKind
from engine.errors import ActorError, ClusterError
from engine.records import arrival
from engine.records import event as ev
from tests.actors.fake_driver import changed, fake_driver


@pytest.fixture
def driver(config):
    """Every actor that died is followed by the second of its place."""
    over_vllm = {"generator.kind": GeneratorKind.vllm, "generator.vllm.start_timeout_s": 500.0,
                 "cluster.start_deadline_s": 100.0, "cluster.call_deadline_s": 60.0}
    fake = fake_driver(changed(config, over_vllm))
    fake.supervisor.replaced.return_value = False
    fake.replace.side_effect = lambda error: error.actor.partition("#")[0] + "#2"
    fake.observer.totals = {"restarts": 0}
    return fake


@pytest.fixture
def succession(driver):
    driver.succession = Succession(driver)
    return driver.succession


def death(actor):
    return ActorError(actor, "advance", "it died")


def test_a_generator_is_welcome_once_it_has_answered(driver, succession):
    succession.died(death("generator-0#1"))
    (first,) = driver.asked
    assert (first.actor, first.method, first.deadline_s) == ("generator-0#2", "metrics", 600.0)
    assert succession.coming == {"generator-0#2"}
    driver.forget.assert_called_once_with("generator-0#1")
    driver.generation.lost.assert_called_once_with("generator-0#1")
    driver.feed.assert_called_once_with(ev.GeneratorLost("generator-0#1"))
    driver.note.assert_called_once_with(arrival.Died("generator-0#1"))
    driver.turns.welcome.assert_not_called()
    first.answer({})
    assert succession.coming == set()
    driver.supervisor.check_machines.assert_called_once_with(["generator-0#2"])
    driver.turns.welcome.assert_called_once_with("generator-0#2")


def test_who_is_not_heard_of_yet_has_the_time_of_its_start_beside(driver, succession):
    assert succession.deadline_s("judge#2") == 60.0
    for actor in ("judge#1", "evaluator#1"):
        succession.died(death(actor))
    assert [(one.actor, one.deadline_s) for one in driver.asked] == [("judge#2", 100.0), ("evaluator#2", 600.0)]
    assert [succession.deadline_s(name) for name in ("judge#2", "evaluator#2", "learner")] == [160.0, 660.0, 60.0]
    for one in driver.asked:
        one.answer({})
    assert succession.deadline_s("judge#2") == 60.0
    driver.judging.again.assert_called_once_with()
    assert driver.evaluator.abandon.call_count == 2
    driver.supervisor.check_machines.assert_called_once_with(["evaluator#2"])
    driver.turns.welcome.assert_not_called()


def test_a_successor_that_dies_on_the_way_is_replaced_in_its_turn(driver, succession):
    succession.died(death("generator-0#1"))
    driver.replace.side_effect = lambda error: "generator-0#3"
    succession.died(death("generator-0#2"))
    assert succession.coming == {"generator-0#3"}
    driver.supervisor.check_machines.side_effect = death("generator-0#3")
    driver.replace.side_effect = lambda error: "generator-0#4"
    driver.asked[-1].answer({})
    assert succession.coming == {"generator-0#4"}
    assert driver.observer.totals["restarts"] == 3
    driver.turns.welcome.assert_not_called()


def test_one_on_another_machine_ends_the_run(driver, succession):
    succession.died(death("generator-0#1"))
    driver.supervisor.check_machines.side_effect = ClusterError("choose weights=object_store")
    with pytest.raises(ClusterError, match="object_store"):
        driver.asked[0].answer({})


def test_nobody_follows_where_there_is_no_room(driver, succession):
    driver.replace.side_effect = lambda error: ""
    driver.supervisor.refusal = "no room became free"
    succession.died(death("generator-0#1"))
    assert driver.observer.say.call_args.args[0].endswith("; nobody takes its place: no room became free")
    assert driver.asked == []
    assert succession.coming == set()
    assert [call.args[0] for call in driver.note.call_args_list] == [arrival.Died("generator-0#1"),
                                                                     arrival.Replaced("")]
    assert [call.args[0] for call in driver.feed.call_args_list] == [ev.GeneratorLost("generator-0#1"),
                                                                     ev.NobodyFollows("generator-0#1")]
    driver.turns.lost.assert_called_once_with("generator-0#1")


def test_a_death_that_is_told_twice_is_one(driver, succession):
    driver.supervisor.replaced.return_value = True
    succession.died(death("judge#1"))
    assert driver.asked == []
    driver.note.assert_not_called()

"""One open call for each generator, and what its next one takes along."""

from dataclasses import replace

import pytest

from actors.generation import Generation
from engine.errors import ActorError
from engine.records import event as ev
from engine.records.manifest import Manifest
from engine.records.version import PolicyVersion
from engine.records.work import GeneratorReport
from tests.actors.fake_driver import changed, fake_driver

OLD = Manifest(PolicyVersion(0, 0), (), (), "", "", "old")
NEW = Manifest(PolicyVersion(0, 1), (), (), "", "", "new")


def report(manifest=OLD, **fields):
    return GeneratorReport("g#1", (), manifest.version, fields.pop("digest", manifest.digest), **fields)


@pytest.fixture
def driver(config):
    return fake_driver(config)


@pytest.fixture
def generation(driver):
    """One generator has joined and serves the first version."""
    driver.training.manifest = OLD
    made = Generation(driver)
    made.welcome("g#1")
    made.go_on()
    (first,) = driver.asked
    assert (first.actor, first.method, first.arguments[0].weights) == ("g#1", "advance", OLD)
    assert first.arguments[0].max_steps == 0, "weights before any work"
    first.answer(report())
    driver.feed.assert_called_once_with(ev.GeneratorJoined("g#1", OLD.version))
    driver.asked.clear()
    return made


def test_the_next_call_takes_along_what_gathered_meanwhile(driver, generation):
    driver.replay.side_effect = lambda method, *arguments: (method, *arguments)
    generation.go_on()
    assert driver.asked == [], "there is nothing to do"
    generation.dispatch(ev.Dispatch("g#1", (4,)))
    generation.go_on()
    generation.dispatch(ev.Dispatch("g#1", (5, 6)))
    generation.cut(ev.CutAll("g#1"))
    generation.publish(NEW)
    generation.go_on()
    (first,) = driver.asked
    assert first.arguments[0].requests == ("checkout", "g#1", [4])
    assert first.arguments[0].max_steps == driver.config.generator.steps_per_call
    driver.training.manifest = NEW
    first.answer(report(open_requests=1))
    driver.feed.assert_called_with(ev.Progressed("g#1", OLD.version, ()))
    generation.go_on()
    order = driver.asked[1].arguments[0]
    assert order.requests == ("checkout", "g#1", [5, 6])
    assert (order.weights, order.cut_all, order.max_steps) == (NEW, True, 0)
    driver.ledger.dispatch.assert_called_with([5, 6], "g#1")


@pytest.mark.parametrize("answer", [
    report(refused="bucket 0 differs"),
    report(digest="other"),
], ids=["refused", "wrong"])
def test_who_cannot_be_trusted_with_weights_is_replaced_once_they_are_written_anew(driver, generation, answer):
    sent = driver.training.manifest = replace(OLD, location="here")
    generation.publish(sent)
    generation.dispatch(ev.Dispatch("g#1", (4,)))
    generation.go_on()
    driver.asked[0].answer(answer)
    generation.dispatch(ev.Dispatch("g#1", (5,)))
    generation.go_on()
    assert len(driver.asked) == 1, "it is given nothing more"
    driver.died.assert_not_called()
    refused, then = driver.training.publish_again.call_args.args
    assert refused is sent
    then()
    (error,) = driver.died.call_args.args
    assert isinstance(error, ActorError)
    assert error.actor == "g#1"
    assert "differs" in error.detail or "digest other" in error.detail


def test_weights_that_were_written_anew_are_sent_from_where_they_are_now(driver, generation):
    again = replace(NEW, location="elsewhere")
    generation.renew(again)
    assert generation.picture()["g#1"]["weights"] is None, "who has a version needs it no more"
    generation.publish(NEW)
    generation.renew(replace(OLD, location="elsewhere"))
    generation.renew(again)
    generation.go_on()
    assert driver.asked[0].arguments[0].weights is again


@pytest.mark.parametrize(("bound", "released"), [(0, True), (2, False)])
def test_a_death_costs_an_attempt_except_at_bound_zero(driver, generation, bound, released):
    schedule = replace(driver.config.schedule, kind="async", max_staleness=bound)
    driver.config = changed(driver.config, {"schedule": schedule})
    generation.dispatch(ev.Dispatch("g#1", (4,)))
    generation.lost("g#1")
    generation.go_on()
    assert driver.asked == []
    generation.lost("g#2")
    driver.ledger.lose.assert_called_once_with("g#1")
    assert [call.args for call in driver.replay.call_args_list] == [("release", "g#1")] * released

"""Groups go to the learner, versions come back, and the books close."""

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import call

import pytest

from actors.generation import Generation
from actors.training import RECORDED, Training
from engine.config.run import Only
from engine.records import event as ev
from engine.records.arrival import Committed
from engine.records.manifest import Manifest
from engine.records.prompt import Message, Prompt
from engine.records.trajectory import DropReason
from engine.records.update import UpdateReport
from engine.records.version import PolicyVersion
from engine.records.work import GeneratorReport
from engine.replay.ledger import Ledger
from engine.replay.selection_bias import LeftGroup
from tests.actors.fake_driver import changed, fake_driver

MANIFEST = Manifest(PolicyVersion(0, 1), (), (), "", "", "digest")


@pytest.fixture
def driver(config):
    return fake_driver(config)


@pytest.fixture
def training(driver):
    """Group 0 of two finished trajectories, five tokens each, one of them correct."""
    driver.ledger = Ledger(None)
    for key in (0, 1):
        driver.ledger.issue(key, 0, "p")
        driver.ledger.deliver(key, 5, finished=True)
    driver.ledger.report("g#1", 10, 0)
    members = [SimpleNamespace(length=4), SimpleNamespace(length=6)]
    driver.controller.roster.groups = {0: SimpleNamespace(prompt_id="p", oldest=2, members=members)}
    driver.controller.version = PolicyVersion(0, 3)
    driver.prompts.by_id = {"p": Prompt("p", (Message("user", "?"),), "5", "math", ("hard",))}
    driver.replay.return_value = {0: 4, 1: 6}
    driver.judging.forget.return_value = [True, False]
    made = Training(driver)
    made.members[0] = (0, 1)
    return made


def report(committed):
    return UpdateReport(PolicyVersion(0, int(committed)), committed, 8 * committed, {"stale": 2} if committed else {})


def test_groups_pass_from_replay_to_the_learner_without_the_driver(driver, training):
    training.train(ev.Train((0,)))
    driver.draw.observe.assert_called_once_with("p", 0.5, 2)
    driver.cluster.call.assert_called_once_with("replay", "take", (0,), driver.controller.version.updates)
    (asked,) = driver.asked
    assert (asked.actor, asked.method) == ("learner", "update")
    assert asked.arguments == (driver.cluster.call.return_value,)
    asked.answer((report(True), MANIFEST))
    assert training.manifest is MANIFEST
    assert training.members == {}
    told = driver.observer.updated.call_args.args[2]
    assert told["schedule/outstanding_groups"] == 0.0
    counts = driver.ledger.counts()
    assert counts["trajectories"]["trained"] == 2
    assert (counts["tokens"]["carried_loss"], counts["tokens"]["masked"]) == (8, {"stale": 2})
    driver.note.assert_called_once_with(Committed(PolicyVersion(0, 1), "digest"))
    driver.feed.assert_called_once_with(ev.Updated(PolicyVersion(0, 1), True))
    driver.evaluator.consider.assert_called_once_with(PolicyVersion(0, 1), MANIFEST)
    training.published(ev.Publish(MANIFEST.version))
    driver.generation.publish.assert_called_once_with(MANIFEST)


@pytest.mark.parametrize(("bound", "lost"), [(1, ""), (0, "stale")])
def test_the_meter_of_selection_bias_hears_of_trained_groups(driver, training, bound, lost):
    driver.config = changed(driver.config, {"schedule.kind": "async", "schedule.max_staleness": bound}) \
        if bound else driver.config
    training.train(ev.Train((0,)))
    driver.observer.selection.left.assert_called_once_with(LeftGroup(5.0, 0.5, ("math", "hard"), 1, lost))


def test_the_meter_of_selection_bias_hears_of_lost_groups(driver, training):
    driver.judging.forget.return_value = []
    training.drop(ev.DropGroup(0, "p", DropReason.given_up, age_versions=4))
    driver.observer.selection.left.assert_called_once_with(LeftGroup(5.0, None, ("math", "hard"), 4, "given_up"))


def test_an_update_that_is_not_finite_drops_its_groups(driver, training):
    training.train(ev.Train((0,)))
    driver.asked[0].answer((report(False), None))
    assert training.manifest is None
    assert driver.ledger.counts()["trajectories"]["dropped"] == {DropReason.non_finite.value: 2}
    driver.feed.assert_called_once_with(ev.Updated(PolicyVersion(0, 0), False))
    driver.evaluator.consider.assert_not_called()


def test_a_dropped_group_leaves_everywhere_and_a_poisonous_prompt_is_not_drawn_again(driver, training):
    training.drop(ev.DropGroup(0, "p", DropReason.poison_prompt, quarantine=True))
    assert driver.replay.call_args == call("forget", 0)
    driver.judging.forget.assert_called_once_with((0, 1))
    assert driver.ledger.counts()["trajectories"]["dropped"] == {"poison_prompt": 2}
    driver.draw.quarantine.assert_called_once_with("p")


def test_sampling_alone_records_batches_and_makes_no_version(driver, training):
    driver.config = changed(driver.config, {"train.only": Only.rollout, "learning.updates": 1})
    training = Training(driver)
    training.members[0] = (0, 1)
    training.train(ev.Train((0,)))
    assert driver.asked[0].method == "record"
    assert driver.asked[0].arguments == (0, driver.cluster.call.return_value)
    assert not training.recorded_all
    driver.asked[0].answer(10)
    assert training.recorded_all
    assert driver.ledger.counts()["tokens"]["masked"] == {RECORDED: 10}
    driver.feed.assert_not_called()


AGAIN = replace(MANIFEST, location="elsewhere")
NEWER = Manifest(PolicyVersion(0, 2), (), (), "", "", "newer")


def test_weights_that_are_refused_are_written_once_more_for_all_who_refuse_them(driver, training):
    training.manifest, done = MANIFEST, []
    for name in ("g-0", "g-1"):
        training.publish_again(MANIFEST, lambda name=name: done.append((name, training.manifest)))
    (asked,) = driver.asked
    assert (asked.actor, asked.method, asked.arguments, done) == ("learner", "publish", (MANIFEST.version,), [])
    asked.answer(AGAIN)
    assert done == [("g-0", AGAIN), ("g-1", AGAIN)]
    driver.generation.renew.assert_called_once_with(AGAIN)
    training.publish_again(MANIFEST, lambda: done.append("late"))
    assert done[-1] == "late", "what it refused is not what its successor receives"
    training.publish_again(AGAIN, lambda: done.append("again"))
    assert (done[-1], len(driver.asked)) == ("late", 2)


def test_weights_that_are_refused_are_not_written_where_newer_ones_stand(driver, training):
    training.manifest, done = MANIFEST, []
    training.publish_again(MANIFEST, lambda: done.append(1))
    training.manifest = NEWER  # the update was under way
    training.publish_again(MANIFEST, lambda: done.append(2))
    training.publish_again(NEWER, lambda: done.append(3))
    assert [asked.arguments for asked in driver.asked] == [(MANIFEST.version,), (NEWER.version,)]
    assert done == [2]
    driver.asked[0].answer(None)
    driver.asked[1].answer(replace(NEWER, location="elsewhere"))
    assert done == [2, 1, 3]
    assert driver.generation.renew.call_count == 1


def test_one_refusal_sends_nobody_to_where_the_weights_no_longer_are(driver, training):
    old, first, second = Manifest(PolicyVersion(0, 0), (), (), "", "", "old"), "g-0#1", "g-1#1"
    driver.training, driver.generation = training, (generation := Generation(driver))
    training.manifest = old
    driver.ledger.issue(4, 2, "p")

    def answer(name, manifest, **fields):
        asked = next(asked for asked in driver.asked if asked.actor == name)
        driver.asked.remove(asked)
        asked.answer(GeneratorReport(name, (), manifest.version, manifest.digest, **fields))

    for name in (first, second):
        generation.welcome(name)
        answer(name, old)
    generation.dispatch(ev.Dispatch(second, (4,)))
    generation.go_on()
    training.manifest = MANIFEST
    generation.publish(MANIFEST)
    generation.go_on()  # the second one is busy, and finds these weights with its next call
    answer(first, old, refused="bucket 0 differs")
    (publish,) = [asked for asked in driver.asked if asked.actor == "learner"]
    publish.answer(AGAIN)
    driver.died.assert_called_once()
    answer(second, old, open_requests=1)
    generation.go_on()
    assert [asked.arguments[0].weights for asked in driver.asked if asked.actor == second] == [AGAIN]

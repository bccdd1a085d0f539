"""Recorded groups are learned from in order, on books that close."""

import pytest

from actors.rollouts import write_rollouts
from actors.study import num_updates, study
from engine.errors import RunFolderError
from engine.records import event as ev
from engine.replay.ledger import Ledger
from tests.actors.fake_driver import changed, fake_driver


@pytest.fixture
def driver(config, tmp_path):
    """Three recorded updates; the learner answers each at once with a group of two."""
    for update in range(3):
        write_rollouts(tmp_path, update, [])
    fake = fake_driver(changed(config, {"train.rollouts": str(tmp_path)}))
    fake.ledger, fake.over, fake.training.members = Ledger(None), False, {}
    fake.controller.version.updates = 0

    def answered(*_):
        index = len(fake.asked) - 1
        fake.asked[-1].answer(([(index, "p", {2 * index: 3, 2 * index + 1: 4})], "report", "manifest"))

    fake.wait_for.side_effect = answered
    return fake


def test_no_more_updates_than_there_are_files(driver, tmp_path):
    assert [num_updates(str(tmp_path), updates) for updates in (2, 3, 9)] == [2, 3, 3]
    with pytest.raises(RunFolderError):
        num_updates(str(tmp_path / "missing"), 1)


def test_each_file_is_one_update_and_its_tokens_are_on_the_books(driver):
    driver.training.updated.side_effect = lambda ids, report, manifest: driver.ledger.check()
    study(driver)
    assert [(asked.actor, asked.method) for asked in driver.asked] == [("learner", "study")] * 3
    assert [asked.arguments[0].name[7:13] for asked in driver.asked] == ["000000", "000001", "000002"]
    assert [call.args for call in driver.training.updated.call_args_list] == [
        ((index,), "report", "manifest") for index in range(3)
    ]
    assert driver.training.members == {0: (0, 1), 1: (2, 3), 2: (4, 5)}
    counts = driver.ledger.counts()
    assert (counts["trajectories"]["issued"], counts["tokens"]["generated"]) == (6, 21)
    driver.feed.assert_called_once_with(ev.StopRequested())


def test_a_resumed_study_goes_on_behind_what_it_learned(driver):
    driver.controller.version.updates = 2
    study(driver)
    assert [asked.arguments[0].name for asked in driver.asked] == ["update-000002.msgpack"]


def test_a_study_that_is_over_asks_nothing(driver):
    driver.over = True
    study(driver)
    assert driver.asked == []
    driver.feed.assert_not_called()

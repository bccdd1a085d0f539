"""A checkpoint holds every part, and a resume drops what came after it."""

import pytest

from actors import snapshot
from actors.cluster import SerialCluster
from engine.errors import CheckpointError
from engine.records.version import PolicyVersion
from engine.replay.ledger import Ledger
from tests.actors.fake_driver import fake_driver

PARTS = ("controller", "draw", "observer")
CONTROLLER = {"version": PolicyVersion(0, 3)}


class Learner:
    """Writes its part itself."""

    def __init__(self):
        self.state = b"first"

    def write_state(self, path):
        path.write_bytes(self.state)

    def load_state(self, path, lineage):
        self.state, self.lineage = path.read_bytes(), lineage

    def close(self):
        pass


@pytest.fixture
def life(config, tmp_path):
    """Begin a life on the same journals; its learner is beside it."""
    opened = []

    def begin():
        driver, learner = fake_driver(config), Learner()
        driver.cluster = SerialCluster()
        driver.cluster.start("learner", lambda: learner, {})
        driver.arrivals = (tmp_path / "arrivals").open("ab")
        driver.ledger = Ledger(tmp_path / "ledger")
        driver.controller.version = PolicyVersion(0, 3)
        driver.replay.side_effect = lambda method, *arguments: {"groups": 5}
        for part in PARTS:
            getattr(driver, part).state_dict.return_value = {"of": part}
        driver.controller.state_dict.return_value = CONTROLLER
        opened.append(driver)
        return driver, learner

    yield begin
    for driver in opened:
        driver.arrivals.close()
        driver.ledger.close()


def fill(driver):
    driver.arrivals.write(b"before")
    driver.ledger.issue(4, 1, "p")
    driver.judging.correct, driver.training.members, driver.training.batches = {4: True}, {1: (4, 5)}, 2


def test_every_part_comes_back_and_what_came_later_is_gone(life, tmp_path):
    driver, learner = life()
    fill(driver)
    assert snapshot.save(driver, tmp_path / "checkpoints").name == "update-000003"
    driver.arrivals.write(b"after")
    driver.ledger.issue(5, 1, "p")
    learner.state = b"later"
    driver.arrivals.flush()

    again, resumed = life()
    snapshot.restore(again, tmp_path / "checkpoints")
    assert resumed.state == b"first"
    for part in ("draw", "observer"):
        assert getattr(again, part).load_state_dict.call_args.args[0] == {"of": part}
    assert again.controller.load_state_dict.call_args.args == (CONTROLLER, resumed.lineage)
    assert again.replay.call_args.args == ("load_state_dict", {"groups": 5})
    assert again.ledger.counts()["trajectories"]["issued"] == 1
    assert again.judging.correct == {4: True}
    assert (again.training.members, again.training.batches) == ({1: (4, 5)}, 2)
    assert (tmp_path / "arrivals").read_bytes() == b"before"
    again.arrivals.write(b", on")
    again.arrivals.flush()
    assert (tmp_path / "arrivals").read_bytes() == b"before, on"


def test_lives_that_go_on_from_one_checkpoint_have_lineages_of_their_own(life, tmp_path):
    driver, _ = life()
    fill(driver)
    snapshot.save(driver, tmp_path / "checkpoints")
    lineages = []
    for _ in range(3):
        again, learner = life()
        snapshot.restore(again, tmp_path / "checkpoints")
        lineages.append(learner.lineage)
    assert lineages == [1, 2, 3]


def test_a_lineage_is_given_once(tmp_path):
    assert [snapshot.next_lineage(tmp_path, after) for after in (0, 0, 7, 2)] == [1, 2, 8, 9]


def test_old_checkpoints_make_room(life, tmp_path, config):
    driver, _ = life()
    fill(driver)
    for updates in range(config.learning.keep_checkpoints + 2):
        driver.controller.version = PolicyVersion(0, updates)
        newest = snapshot.save(driver, tmp_path / "checkpoints")
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert len(kept) == config.learning.keep_checkpoints
    assert kept[-1] == newest


def test_an_inbox_that_ends_before_its_checkpoint_is_refused(life, tmp_path):
    driver, _ = life()
    fill(driver)
    snapshot.save(driver, tmp_path / "checkpoints")
    (tmp_path / "arrivals").write_bytes(b"bef")
    with pytest.raises(CheckpointError, match=r"arrivals has 3 bytes, its checkpoint stands at 6"):
        snapshot.restore(life()[0], tmp_path / "checkpoints")


def test_a_life_without_a_checkpoint_begins_anew(life, tmp_path):
    driver, _ = life()
    fill(driver)
    with pytest.raises(CheckpointError):
        snapshot.restore(driver, tmp_path / "checkpoints")
    snapshot.forget(driver)
    assert (tmp_path / "arrivals").read_bytes() == b""
    driver.ledger.sync()
    assert (tmp_path / "ledger").read_bytes() == b""
    driver.observer.restart.assert_called_once_with()

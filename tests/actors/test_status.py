"""What a run says of itself while it lives, and what is read when it is dead."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest

from actors.cluster import SerialCluster
from actors.roster import FLYING, JUDGED, Member, OpenGroup, Roster
from actors.seats import Seats
from actors.stalls import Thresholds, WatchedCluster
from actors.status import CUT_OFF, RUNNING, Status, is_live, picture, queues, read_status
from engine.errors import RunFolderError
from engine.records.version import PolicyVersion
from engine.replay.ledger import Ledger
from engine.run_folder import FileLock


@pytest.fixture
def clock():
    return [100.0]


@pytest.fixture
def driver():
    roster, seats = Roster(3), Seats()
    for group_id, statuses in enumerate(((FLYING, JUDGED), (JUDGED, JUDGED))):
        members = [Member(2 * group_id + i, 1, status, "g#1" if status == FLYING else "", 5)
                   for i, status in enumerate(statuses)]
        roster.add(OpenGroup(group_id, f"p{group_id}", members))
    seats.join("g#1", 2)
    return SimpleNamespace(
        controller=SimpleNamespace(roster=roster, seats=seats, version=PolicyVersion(0, 3)),
        generation=SimpleNamespace(picture=lambda: {"g#1": {"busy": True}}), ledger=Ledger(None),
        observer=SimpleNamespace(totals=Counter(generated_tokens=40), rewards=[0.5], latest={"learn/loss": 1.0}),
    )


@pytest.fixture
def status(tmp_path, clock):
    watch = WatchedCluster(SerialCluster(), Thresholds(), tmp_path, print, lambda: clock[0])
    watch.start("g#1", dict, {})
    shown = []
    made = Status(tmp_path / "status.json", watch, 7, shown.append, lambda: clock[0])
    made.shown = shown
    return made


def written(status):
    return json.loads(status._path.read_text())


def test_queues_count_trajectories_by_state_and_groups(driver):
    driver.controller.roster.train([1])
    found = queues(driver)
    assert (found["flying_trajectories"], found["judged_trajectories"], found["ready_trajectories"]) == (1, 3, 0)
    assert (found["outstanding_groups"], found["training_groups"], found["complete_groups"]) == (1, 1, 0)


def test_a_picture_holds_every_lease_as_plain_data(driver):
    seen = json.loads(json.dumps(picture(driver)))
    assert seen["generators"]["g#1"] == {"serves": 2, "holds": 0, "lease_left_s": None, "cut_asked": False}
    assert seen["groups"][0]["members"] == [[0, "flying", "g#1", 5], [1, "judged", "", 5]]
    assert seen["mailboxes"] == {"g#1": {"busy": True}}
    assert seen["ledger"]["closes"]


def test_before_there_is_a_driver_it_tells_of_actors(status):
    status.refresh()
    assert written(status)["actors"] == {"g#1": {"state": "idle", "since": 100.0, "silent_s": None, "last_answer": ""}}
    assert "queues" not in written(status)


def test_it_is_written_at_most_once_a_second_and_exported(status, driver, clock):
    status.driver = driver
    for _ in range(3):
        status.refresh()
    assert len(status.shown) == 1
    clock[0] += 2.0
    driver.observer.totals["generated_tokens"] = 100
    status.refresh()
    body = written(status)
    assert status.shown[1]["tokens_per_second"] == body["tokens_per_second"] == 30.0
    assert (body["state"], body["updates"], body["total_updates"], body["version"]) == (RUNNING, 3, 7, "0.3")
    assert (body["serving"], body["oldest_outstanding_versions"]) == ({"g#1": 2}, 2)
    assert (body["rewards"], body["latest"], body["at"]) == ([0.5], {"learn/loss": 1.0}, 102.0)


def test_an_actor_at_work_says_on_what_and_since_when(status, clock):
    status.cluster.answered["g#1"] = (103.0, "keys")
    status.cluster.call("g#1", "copy")
    clock[0] = 104.0
    status.write(RUNNING)
    assert written(status)["actors"]["g#1"] == {"state": "copy", "since": 103.0, "silent_s": 1.0,
                                               "last_answer": "keys"}
    assert [wait["method"] for wait in written(status)["waits"]] == ["copy"]


def test_who_holds_the_folders_lock_lives(tmp_path, status):
    status.write(RUNNING)
    assert not is_live(tmp_path)
    assert read_status(tmp_path)["state"] == CUT_OFF
    lock = FileLock.acquire(tmp_path / ".lock")
    assert is_live(tmp_path)
    assert read_status(tmp_path)["state"] == RUNNING
    lock.release()
    assert not is_live(tmp_path)
    status.write("complete")
    assert read_status(tmp_path)["state"] == "complete"


def test_a_folder_that_says_nothing_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="has begun"):
        read_status(tmp_path)
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(RunFolderError, match="damaged"):
        read_status(tmp_path)


def test_a_status_that_cannot_be_written_is_named(status):
    status._path.mkdir()
    with pytest.raises(RunFolderError, match=r"status\.json cannot be written"):
        status.write(RUNNING)

"""Every question is on record; one that nobody answers is told of once, then once more at the deadline."""

import json
import math

import pytest

from actors.cluster import Pending, SerialCluster, ask
from actors.stalls import Thresholds, WatchedCluster, sentence
from engine.errors import ActorError

ROLES = ("generator-0#1", "evaluator#1", "learner", "judge#1", "replay")


class Remote:
    """A cluster in which time passes only while somebody waits, and answers come when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ready: set[Pending] = set()
        self.killed: list[str] = []

    def reserve(self, actors) -> None:
        self.reserved = actors

    def look(self, name, path):
        return f"machine of {name}", path.exists()

    def start(self, name, factory, arguments, *, threads) -> None:
        self.threads = threads

    def call(self, name, method, *arguments) -> Pending:
        return Pending(name, method, arguments)

    def wait(self, pending, timeout_s):
        done = next((one for one in pending if one in self.ready), None)
        if done is None:
            self.now += timeout_s
        return done

    def result(self, pending):
        if pending.method == "fail":
            raise ActorError(pending.actor, "fail", "it died")
        return pending.method

    def kill(self, name) -> None:
        self.killed.append(name)

    def close(self) -> None:
        self.killed.append("all")


@pytest.fixture
def remote():
    return Remote()


@pytest.fixture
def said():
    return []


@pytest.fixture
def watch(remote, said, tmp_path):
    made = WatchedCluster(remote, Thresholds(5.0, 20.0), tmp_path / "stalls", said.append, lambda: remote.now)
    for name in ROLES:
        made.start(name, object, {}, threads=3)
    made.picture = lambda: {"queues": {"ready": 3}}
    return made


def stalls(tmp_path):
    return [json.loads(file.read_text()) for file in sorted((tmp_path / "stalls").glob("*.json"))]


@pytest.mark.parametrize("actor", ROLES)
def test_each_actor_that_stalls_is_named_with_its_last_progress(watch, remote, said, tmp_path, actor):
    ask_and_answer(watch, remote, actor, "metrics")
    remote.now += 2.0
    pending = watch.call(actor, "work")
    busy = watch.call(next(name for name in ROLES if name != actor), "other")
    remote.ready.add(busy)
    assert watch.wait([pending], 7.0) is None
    asked, last = "asked at 00:16:42 UTC", "its last answer, to metrics, came 8 s ago"
    assert said == [f"stall: {actor} has not answered work for 6 s, {asked}; {last}"]
    (stall,) = stalls(tmp_path)
    assert (stall["actor"], stall["method"], stall["passed"]) == (actor, "work", "warning")
    assert f"stall: {stall['sentence']}" == said[0]
    assert stall["queues"] == {"ready": 3}
    assert [wait["method"] for wait in stall["waits"]] == ["work", "other"]


def ask_and_answer(watch, remote, actor, method):
    pending = watch.call(actor, method)
    remote.ready.add(pending)
    assert watch.wait([pending], 1.0) is pending
    assert watch.result(pending) == method


def test_a_stall_is_told_twice_at_its_warning_and_at_its_deadline(watch, said, tmp_path):
    with pytest.raises(ActorError, match=r"actor learner during update: no answer"):
        ask(watch, "learner", "update", deadline_s=30.0)
    assert [stall["passed"] for stall in stalls(tmp_path)] == ["warning", "deadline"]
    assert len(said) == 2
    assert "it has answered nothing yet" in said[0]


def test_who_works_through_its_queue_is_not_stalled(watch, remote, said):
    """Six questions of 3 s each: the last waits for 18 s, and no single one for 5."""
    questions = [watch.call("judge#1", f"judge {number}") for number in range(6)]
    for question in questions:
        assert watch.wait([question], 3.0) is None
        remote.ready.add(question)
        watch.result(question)
    assert said == []


def test_behind_a_stalled_question_nobody_else_is_blamed(watch, said):
    first, second = watch.call("judge#1", "first"), watch.call("judge#1", "second")
    watch.wait([first, second], 8.0)
    assert [text.partition(" for ")[0] for text in said] == ["stall: judge#1 has not answered first"]


def test_an_answer_that_lies_there_unread_is_no_stall(watch, remote, said):
    remote.ready.add(watch.call("learner", "update"))
    watch.wait([watch.call("replay", "deliver")], 4.0)
    remote.now += 60.0
    watch.wait([watch.call("generator-0#1", "advance")], 0.5)
    assert [text.partition(" has")[0] for text in said] == ["stall: replay"]


def test_who_waits_for_another_is_excused_and_the_other_is_named(watch, remote, said):
    take = watch.call("replay", "take")
    update = watch.call("learner", "update", take)
    watch.wait([update], 7.0)
    assert [text.partition(" for ")[0] for text in said] == ["stall: replay has not answered take"]
    remote.ready |= {take, update}
    assert watch.wait([update], 1.0) is update
    watch.result(update)
    assert watch.waits() == [], "what it needed is settled with it"


def test_the_dead_are_forgotten(watch, remote, said):
    watch.call("judge#1", "judge")
    watch.kill("judge#1")
    watch.wait([watch.call("replay", "take")], 4.0)
    assert remote.killed == ["judge#1"]
    assert [wait["actor"] for wait in watch.waits()] == ["replay"]
    assert "judge#1" not in watch.started


def test_a_failed_call_is_settled_but_is_no_progress(watch, remote):
    pending = watch.call("judge#1", "fail")
    remote.ready.add(pending)
    with pytest.raises(ActorError):
        watch.result(pending)
    assert watch.waits() == []
    assert "judge#1" not in watch.answered


def test_a_long_wait_refreshes_and_the_rest_is_the_clusters(watch, remote, tmp_path):
    refreshed = []
    watch.refresh = lambda: refreshed.append(remote.now)
    watch.wait([watch.call("learner", "update")], 4.0)
    assert refreshed == [1000.0, 1001.0, 1002.0, 1003.0]
    assert remote.threads == 3
    watch.reserve(["replay"])
    assert remote.reserved == ["replay"]
    assert watch.look("learner", tmp_path) == ("machine of learner", True)
    watch.close()
    assert remote.killed == ["all"]


def test_in_one_process_nobody_can_stall_alone(tmp_path, said):
    now = [0.0]
    watch = WatchedCluster(SerialCluster(), Thresholds(), tmp_path / "stalls", said.append, lambda: now[0])
    watch.start("actor", dict, {})
    watch.call("actor", "keys")
    now[0] = math.nextafter(1e9, 0)
    assert ask(watch, "actor", "copy", deadline_s=1.0) == {}
    assert said == []
    assert not (tmp_path / "stalls").exists()


def test_a_sentence_says_what_whose_since_when_and_the_last_progress():
    text = sentence("generator-2#1", "advance", 0.0, None, 312.0)
    assert text == ("generator-2#1 has not answered advance for 312 s, asked at 00:00:00 UTC; it has answered "
                    "nothing yet")


def test_who_is_being_started_has_more_time(remote, said, tmp_path):
    watch = WatchedCluster(remote, Thresholds(5.0, 90.0, 30.0), tmp_path / "stalls", said.append, lambda: remote.now)
    pending = watch.call("learner", "metrics")
    watch.wait([pending], 25.0)
    assert said == []
    remote.ready.add(pending)
    watch.result(pending)
    watch.wait([watch.call("learner", "update")], 7.0)
    assert [text.partition(" for ")[0] for text in said] == ["stall: learner has not answered update"]

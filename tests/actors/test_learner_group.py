"""One name for several learners: all are asked, the first one answers, any of them can fail."""

from pathlib import Path

import pytest

from actors.cluster import SerialCluster, ask
from actors.learner_group import LearnerGroup, with_learners
from engine.errors import ActorError
from tests.actors.fake_driver import changed


class Rank:
    """Says what it hears."""

    def __init__(self, heard, rank):
        self.heard, self.rank = heard, rank

    def meet(self):
        assert self.rank == 0
        return "here:7"

    def join(self, address):
        self.heard.append((self.rank, "join", address))

    def update(self, groups):
        self.heard.append((self.rank, "update", groups))
        if groups == "broken" and self.rank == 1:
            raise ActorError("learner-1", "update", "it died")
        return f"answer of {self.rank}"

    def record(self, batch):
        self.heard.append((self.rank, "record", batch))
        return batch

    def close(self):
        self.heard.append((self.rank, "close", None))


class Other:
    def say(self, word="yes"):
        return word

    def close(self):
        pass


@pytest.fixture
def heard():
    return []


@pytest.fixture
def group(heard):
    group = LearnerGroup(SerialCluster(), ["learner", "learner-1", "learner-2"], 5.0)
    group.start("learner", Rank, {"heard": heard}, threads=2)
    group.start("other", Other, {})
    yield group
    group.close()


def test_all_ranks_meet_before_their_first_question_and_the_first_one_answers(group, heard):
    assert ask(group, "learner", "update", "groups", deadline_s=1.0) == "answer of 0"
    assert heard == [(rank, "join", "here:7") for rank in range(3)] + [
        (rank, "update", "groups") for rank in range(3)]
    heard.clear()
    pending = group.call("other", "say", "groups")
    assert group.wait([group.call("learner", "update", "more"), pending], 1.0).actor in ("learner", "other")
    assert ask(group, "learner", "update", "again", deadline_s=1.0) == "answer of 0"
    assert [rank for rank, method, what in heard if what == "again"] == [0, 1, 2]


def test_the_error_of_any_rank_is_that_of_the_learner(group):
    with pytest.raises(ActorError, match="learner-1 during update: it died"):
        ask(group, "learner", "update", "broken", deadline_s=1.0)


def test_nobody_waits_for_the_others_once_one_has_failed(group):
    ask(group, "learner", "update", "fine", deadline_s=1.0)
    pending = group.call("learner", "update", "broken")
    assert group.wait([pending], 1.0) is pending
    assert len(pending.token.members) == 1, "the third one may hang in a collective"


def test_who_is_not_done_is_not_returned(group):
    class Slow(SerialCluster):
        def wait(self, pending, timeout_s):
            return None

    assert LearnerGroup(Slow(), ["learner", "learner-1"], 1.0).wait([], 0.0) is None


def test_only_the_first_writes_records(group, heard):
    assert ask(group, "learner", "record", 3, deadline_s=1.0) == 3
    assert heard == [(0, "record", 3)]


def test_killing_the_learner_kills_all_of_it(group, heard):
    ask(group, "learner", "update", "groups", deadline_s=1.0)
    heard.clear()
    group.kill("learner")
    group.kill("other")
    assert heard == [(rank, "close", None) for rank in range(3)]
    with pytest.raises(ActorError, match="ended before"):
        ask(group, "learner", "update", "groups", deadline_s=1.0)


def test_every_rank_has_a_place_and_the_learner_lives_where_the_first_does():
    class Places(SerialCluster):
        def __init__(self):
            super().__init__()
            self.asked = []

        def reserve(self, actors):
            self.asked.append(list(actors))

        def look(self, name, path):
            return f"home of {name}", path.name != name

    cluster = Places()
    group = LearnerGroup(cluster, ["learner", "learner-1"], 1.0)
    group.reserve(["replay", "learner", "judge"])
    group.reserve(["generator-0"])
    assert cluster.asked == [["learner", "learner-1", "replay", "judge"], ["generator-0"]]
    assert group.look("learner", Path()) == ("home of learner", True)
    assert group.look("learner", Path("learner-1")) == ("home of learner-1", False), "who lacks the folder is named"
    assert group.look("judge#1", Path()) == ("home of judge#1", True)


def test_one_learner_needs_no_group(config):
    cluster = SerialCluster()
    assert with_learners(cluster, config) is cluster
    many = changed(config, {"cluster.kind": type(config.cluster.kind)("ray")})
    many = changed(many, {"learning.num_learners": 2})
    assert isinstance(with_learners(cluster, many), LearnerGroup)

"""The cluster inside one process."""

import pytest

from actors.cluster import SerialCluster, ask
from engine.errors import ActorError


class Counter:
    """An actor that notes in which order it was asked."""

    def __init__(self, start: int = 0) -> None:
        self.value = start
        self.closed = False

    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    def fail(self) -> None:
        raise KeyError("no such thing")

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def cluster():
    cluster = SerialCluster()
    cluster.start("counter", Counter, {"start": 10})
    yield cluster
    cluster.close()


def test_calls_run_oldest_first_when_somebody_waits(cluster):
    first, second = cluster.call("counter", "add", 1), cluster.call("counter", "add", 2)
    assert cluster.wait([second], 1.0) is second
    assert cluster.result(first) == 11, "the older call ran on the way"
    assert cluster.result(second) == 13
    assert cluster.wait([first, second], 1.0) is first, "in the order given where several are done"


def test_a_pending_result_is_an_argument(cluster):
    cluster.start("other", Counter, {})
    amount = cluster.call("counter", "add", 5)
    assert ask(cluster, "other", "add", amount, deadline_s=1.0) == 15


def test_what_a_call_raises_arrives_with_its_result(cluster):
    pending = cluster.call("counter", "fail")
    assert cluster.wait([pending], 1.0) is pending
    with pytest.raises(KeyError, match="no such thing"):
        cluster.result(pending)


def test_a_failed_argument_fails_the_call(cluster):
    with pytest.raises(KeyError):
        ask(cluster, "counter", "add", cluster.call("counter", "fail"), deadline_s=1.0)


def test_a_killed_actor_answers_nothing_more(cluster):
    before = cluster.call("counter", "add", 1)
    cluster.kill("counter")
    after = cluster.call("counter", "add", 1)
    for pending in (before, after):
        assert cluster.wait([pending], 1.0) is pending
        with pytest.raises(ActorError, match="actor counter during add"):
            cluster.result(pending)
    cluster.kill("counter")


def test_nobody_waits_for_what_nobody_asked(cluster):
    assert cluster.wait([], 1.0) is None


def test_a_wait_that_is_over_names_actor_and_question():
    class Silent(SerialCluster):
        def wait(self, pending, timeout_s):
            return None

    cluster = Silent()
    cluster.start("counter", Counter, {})
    with pytest.raises(ActorError, match="actor counter during add: no answer within"):
        ask(cluster, "counter", "add", 1, deadline_s=0.1)


def test_closing_closes_every_actor(cluster):
    made = []
    cluster.start("noted", lambda: made.append(Counter()) or made[-1], {})
    cluster.close()
    assert made[0].closed

import socket
import threading
import time

import pytest

from engine.errors import WeightChannelError
from engine.weights.rendezvous import Attendance, Line, Reception, route


@pytest.fixture
def reception():
    reception = Reception("127.0.0.1")
    yield reception
    reception.close()


def attend(reception):
    return Attendance(reception.location, time.monotonic() + 5)


def listen_until(reception, true):
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        reception.listen(0.05)


def test_who_asks_is_a_member_and_hears_the_answer(reception):
    attendance = attend(reception)
    attendance.say(want="0.1-1")
    listen_until(reception, lambda: reception.members and reception.members[0].wants)
    (member,) = reception.members
    assert member.wants == "0.1-1"
    assert member.name.startswith("process ")
    reception.tell(member, start="x", rank=1)
    assert attendance.hear(5.0) == {"start": "x", "rank": 1}
    assert attendance.hear(0.0) is None
    attendance.say(took="0.1", broken="y")
    listen_until(reception, lambda: member.took)
    assert (member.took, member.broken) == ("0.1", ["y"])
    attendance.close()


def test_each_side_hears_that_the_other_is_gone(reception):
    leaving, staying = attend(reception), attend(reception)
    listen_until(reception, lambda: len(reception.members) == 2)
    leaving.close()
    listen_until(reception, lambda: len(reception.members) == 1)
    reception.close()
    with pytest.raises(OSError, match="gone"):
        staying.hear(5.0)
    staying.close()


def test_who_cannot_be_told_is_a_member_no_more(reception):
    attend(reception).close()
    listen_until(reception, lambda: reception.members)
    (member,) = reception.members
    while reception.members:  # the first word may still leave before the end is known
        reception.tell(member, word="x")
    assert reception.members == []


@pytest.mark.parametrize("said", [b'{"token": "wrong", "want": "0.1-1"}\n', b'{"want": "0.1-1"}\n', b"GET / HTTP/1.1\n",
                                  b"[]\n", b"x" * 200_000], ids=["wrong", "none", "http", "list", "endless"])
def test_a_stranger_is_sent_away(reception, said):
    address = reception.location.partition("/")[0].rpartition(":")
    stranger = socket.create_connection((address[0], int(address[2])), 5)
    listen_until(reception, lambda: reception.members)
    stranger.sendall(said)
    listen_until(reception, lambda: not reception.members)
    stranger.close()


def test_messages_come_whole_however_they_are_cut():
    left, right = socket.socketpair()
    line = Line(right)
    left.sendall(b'{"a": 1}\n{"b"')
    assert line.heard() == [{"a": 1}]
    assert line.heard() == []
    left.sendall(b": 2}\n")
    assert line.heard() == [{"b": 2}]
    left.close()
    line.close()


def test_an_address_that_is_not_here_is_named():
    with pytest.raises(WeightChannelError, match=r"weights\.host='192\.0\.2\.7'"):
        Reception("192.0.2.7")


class Probe(socket.socket):
    """A machine with one route, or none."""

    route = True

    def connect(self, address):
        if not self.route:
            raise OSError("Network is unreachable")

    def getsockname(self):
        return ("10.1.2.3", 4711)


def test_the_route_is_the_address_that_would_be_used_or_named_as_missing(monkeypatch):
    monkeypatch.setattr(socket, "socket", Probe)
    assert route() == "10.1.2.3"
    Probe.route = False
    with pytest.raises(WeightChannelError, match=r"weights\.host=route finds no route"):
        route()


def test_a_wait_ends_when_somebody_wakes_it(reception):
    waiting = threading.Thread(target=reception.listen, args=(600.0,), daemon=True)
    waiting.start()
    reception.wake()
    waiting.join(20.0)
    assert not waiting.is_alive()
    reception.close()
    reception.wake()

"""Who is served together, and what happens when a member fails: real receivers over sockets, in threads."""

import threading
from dataclasses import replace

import pytest
import torch

from engine.config.cluster import WeightsConfig
from engine.errors import WeightChannelError
from engine.records.version import PolicyVersion
from engine.weights.broadcast import BroadcastReceiver, BroadcastSender
from engine.weights.rounds import ATTEMPTS
from tests.engine.weights.socket_communicators import SocketCommunicators

V1, V2, V3 = (PolicyVersion(0, updates) for updates in (1, 2, 3))


class Scene:
    """A sender, and receivers that take a manifest each in a thread of their own."""

    def __init__(self, folder, **options):
        self.folder = folder
        self.config = WeightsConfig(bucket_mib=1, **({"deadline_s": 20.0, "gather_s": 0.2} | options))
        self.communicators = SocketCommunicators()
        self.sender = BroadcastSender(self.config, "test", self.communicators)
        self.receivers = []

    def receiver(self, amid=None):
        self.receivers.append(BroadcastReceiver(self.config, "test", SocketCommunicators(amid)))
        return self.receivers[-1]

    def publish(self, version, size=300_000):
        return self.sender.publish({"a": torch.full((size,), float(version.updates))}, version)

    def take(self, manifest, *receivers, wait_s=20.0):
        """What each receiver got: its weights' version, or its error."""
        found = {}

        def one(receiver):
            try:
                staged = receiver.receive(manifest)
                assert (staged.tensors["a"] == staged.version.updates).all()
                found[receiver] = staged.version
            except WeightChannelError as error:
                found[receiver] = error

        threads = [threading.Thread(target=one, args=(receiver,), daemon=True) for receiver in receivers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(wait_s)
        return [found.get(receiver) for receiver in receivers]

    @property
    def ranks(self):
        """Sizes of the communicators made so far, the sender counted."""
        return [ranks for _, ranks in self.communicators.joined]

    def close(self):
        for receiver in self.receivers:
            receiver.close()
        self.sender.close()


@pytest.fixture
def scene(tmp_path):
    opened = []

    def make(**options):
        opened.append(Scene(tmp_path, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_who_comes_alone_has_a_round_alone_and_those_who_come_together_share_one(scene):
    live = scene(gather_s=5.0)
    left, right = live.receiver(), live.receiver()
    first = live.publish(V1)
    live.take(first, left)
    live.take(first, right)
    assert live.ranks == [2, 2]
    for updates in (2, 3, 4):
        version = PolicyVersion(0, updates)
        assert live.take(live.publish(version), left, right) == [version] * 2
    assert live.ranks == [2, 2, 3]  # and a membership that stays keeps its communicator


def test_who_does_not_come_is_waited_for_no_longer_than_gather_s(scene):
    live = scene(gather_s=0.3)
    left, right = live.receiver(), live.receiver()
    first = live.publish(V1)
    live.take(first, left)
    live.take(first, right)
    second = live.publish(V2)
    assert live.take(second, left) == [V2]
    assert live.take(second, right) == [V2]
    assert live.ranks == [2, 2]


def test_who_joins_waits_for_nobody_and_a_member_that_left_is_not_waited_for(scene):
    live = scene(gather_s=8.0)
    left, right = live.receiver(), live.receiver()
    first = live.publish(V1)
    live.take(first, left)
    live.take(first, right)
    right.close()
    assert live.take(live.publish(V2), left, wait_s=5.0) == [V2]
    joining = live.receiver()
    assert live.take(live.sender.publish({"a": torch.full((3,), 3.0)}, V3), joining, left, wait_s=5.0) == [V3] * 2


def test_the_last_memberships_keep_their_communicators_and_no_others(scene):
    live = scene(gather_s=0.0)
    receivers = [live.receiver() for _ in range(3)]
    manifest = live.publish(V1)
    for receiver in receivers:
        live.take(manifest, receiver)
    manifest = live.publish(V2)
    live.take(manifest, receivers[2])
    live.take(manifest, receivers[0])
    assert live.ranks == [2] * 4
    assert [len(receiver._groups) for receiver in receivers] == [1] * 3


def test_a_member_that_hangs_costs_the_round_and_the_others_begin_anew(scene):
    live = scene(deadline_s=2.0, gather_s=1.0)
    live.config = replace(live.config, deadline_s=60.0)  # of the receivers; a round has 1 s
    hanging, hangs = threading.Event(), []

    def amid(bucket, index):
        if hangs:
            hanging.wait(20.0)

    stuck, well = live.receiver(amid), live.receiver()
    first = live.publish(V1)
    live.take(first, stuck)
    live.take(first, well)
    hangs.append(True)
    manifest, outcome = live.publish(V2), {}
    taking = threading.Thread(target=lambda: outcome.update(stuck=live.take(manifest, stuck)), daemon=True)
    taking.start()
    assert live.take(manifest, well) == [V2]
    assert live.ranks == [2, 2, 3]  # the last was served by the communicator that it has alone
    hanging.set()
    taking.join(20)
    assert outcome["stuck"] == [V2]  # late, but alive: it asked again


def test_who_fails_by_itself_in_a_round_that_fails_has_one_more_and_the_next_version_at_once(scene):
    live = scene(gather_s=1.0)
    reception, dying, failing = live.sender._rounds._reception, [], []
    amid = threading.Event()

    def wait_until(true):
        for _ in range(5000):
            if true():
                return
            threading.Event().wait(0.002)

    def amid_leaving(bucket, index):
        if dying:
            amid.wait(10.0)
            leaving.close()
            raise RuntimeError("dying")

    def amid_staying(bucket, index):
        if failing:
            failing.clear()
            amid.set()
            wait_until(lambda: len(reception.members) == 1)  # so the sender gave the round up before it hears of this
            raise RuntimeError("out of memory")

    leaving, staying = live.receiver(amid_leaving), live.receiver(amid_staying)
    first = live.publish(V1)
    live.take(first, leaving)
    live.take(first, staying)
    served, serve = [], live.sender._rounds._round

    def counted(publication, askers):
        served.append((publication.version, len(askers)))
        serve(publication, askers)

    live.sender._rounds._round = counted
    said = staying._attendance.say

    def say(**message):
        said(**message)
        if "broken" in message:
            wait_until(lambda: len(served) == 2)  # and serves it anew before it hears that the round was given up

    staying._attendance.say = say
    dying.append(True)
    failing.append(True)
    assert live.take(live.publish(V2), leaving, staying)[1] == V2
    assert live.take(live.publish(V3), staying, wait_s=5.0) == [V3]
    assert served == [("0.2", 2), ("0.2", 1), ("0.3", 1)]


def test_what_is_withdrawn_just_before_its_round_is_not_read_any_more(scene):
    live = scene()
    serve, spare = live.sender._rounds._round, []

    def late(publication, askers):
        live.sender.retire(V1)
        spare.append(live.sender._spare is publication.buckets)
        serve(publication, askers)

    live.sender._rounds._round = late
    (error,) = live.take(live.publish(V1), live.receiver())
    assert "version 0.1 is gone" in str(error)
    assert (spare, live.ranks) == ([True], [])


def test_a_receiver_whose_rounds_keep_failing_is_told_why(scene):
    live = scene()

    def stumble(bucket, index):
        raise RuntimeError("out of memory")

    broken, well = live.receiver(stumble), live.receiver()
    (error,) = live.take(live.publish(V1), broken)
    assert "version 0.1 was not broadcast: RuntimeError: out of memory" in str(error)
    assert len(live.ranks) == ATTEMPTS
    assert live.take(live.publish(V2), well) == [V2]


def test_a_sender_that_closes_ends_every_wait(scene):
    live = scene()
    started, go_on = threading.Event(), threading.Event()

    def amid(bucket, index):
        started.set()
        go_on.wait(10.0)

    waiting = live.receiver(amid)
    manifest, outcome = live.publish(V1, 3_000_000), {}
    taking = threading.Thread(target=lambda: outcome.update(found=live.take(manifest, waiting)), daemon=True)
    taking.start()
    assert started.wait(10.0)
    live.sender.close()
    go_on.set()
    taking.join(20.0)
    assert not taking.is_alive()
    assert "learner's end is gone" in str(outcome["found"][0])


def test_an_error_of_the_thread_itself_reaches_the_next_publish(scene, monkeypatch):
    live = scene()
    monkeypatch.setattr(live.sender._rounds, "_serve", lambda: 1 / 0)
    live.sender._rounds._reception.wake()
    live.sender._rounds._thread.join(5.0)
    with pytest.raises(WeightChannelError, match="the weight channel has ended: ZeroDivisionError"):
        live.publish(V1)

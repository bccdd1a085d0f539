"""What is particular to a channel that broadcasts; the rest is in test_conformance and test_rounds."""

from dataclasses import replace

import pytest
import torch

from engine.config.cluster import KeptIn, WeightsConfig
from engine.errors import WeightChannelError
from engine.records.version import PolicyVersion
from engine.weights.broadcast import BroadcastReceiver, BroadcastSender
from tests.engine.weights.socket_communicators import SocketCommunicators

V1, V2, V3, V4 = (PolicyVersion(0, updates) for updates in (1, 2, 3, 4))
CONFIG = WeightsConfig(bucket_mib=1, deadline_s=20.0, gather_s=0.0)


@pytest.fixture
def sender(tmp_path):
    sender = BroadcastSender(CONFIG, "test", SocketCommunicators())
    yield sender
    sender.close()


@pytest.fixture
def receiver(tmp_path):
    receiver = BroadcastReceiver(CONFIG, "test", SocketCommunicators())
    yield receiver
    receiver.close()


def weights(value=1.0, size=300_000):
    return {"a": torch.full((size,), value)}


def test_publishing_waits_for_nobody_and_many_versions_need_the_memory_of_two(sender):
    places = set()
    for updates in range(1, 6):
        manifest = sender.publish(weights(), PolicyVersion(0, updates))
        places |= {bucket.data_ptr() for kept in sender._kept.values() for bucket in kept.buckets}
    assert (len(sender._kept), len(places), len(manifest.buckets)) == (2, 4, 2)
    assert manifest.location.endswith("/0.5-5")


def test_a_version_published_again_has_a_key_of_its_own(sender, receiver):
    first = sender.publish(weights(), V1)
    sender.retire(V1)
    second = sender.publish(weights(), V1)
    assert first.digest == second.digest
    assert receiver.receive(second).version == V1
    with pytest.raises(WeightChannelError, match="gone"):
        receiver.receive(first)


def test_a_receiver_follows_the_learner_into_its_next_life(tmp_path, sender, receiver):
    receiver.receive(sender.publish(weights(1.0), V1))
    sender.close()
    successor = BroadcastSender(CONFIG, "test", SocketCommunicators())
    staged = receiver.receive(successor.publish(weights(2.0), PolicyVersion(1, 1)))
    assert (staged.tensors["a"] == 2.0).all()
    receiver.close()
    successor.close()


def test_a_sender_that_is_gone_is_named_at_once(sender, receiver):
    manifest = sender.publish(weights(), V1)
    sender.close()
    with pytest.raises(WeightChannelError, match="learner's end is gone"):
        receiver.receive(manifest)


def test_without_the_token_there_are_no_weights(sender, receiver):
    manifest = sender.publish(weights(), V1)
    address, _, key = manifest.location.split("/")
    with pytest.raises(WeightChannelError, match="gone"):
        receiver.receive(replace(manifest, location=f"{address}/{'0' * 32}/{key}"))


def test_what_is_refused_hangs_up_and_the_next_version_is_received(tmp_path, sender):
    spoil = []

    def amid(bucket, index):
        if spoil:
            bucket[3] ^= 1

    receiver = BroadcastReceiver(CONFIG, "test", SocketCommunicators(amid))
    manifest = sender.publish(weights(), V1)
    spoil.append(True)
    with pytest.raises(WeightChannelError, match="the bytes are refused"):
        receiver.receive(manifest)
    assert receiver._attendance is None
    spoil.clear()
    assert receiver.receive(sender.publish(weights(2.0), V2)).version == V2
    receiver.close()


def test_memory_that_is_being_sent_is_not_written_over(tmp_path, sender):
    def amid(bucket, index):
        if index == 0:
            for updates in (2, 3, 4):
                sender.publish(weights(float(updates), 3_000_000), PolicyVersion(0, updates))

    receiver = BroadcastReceiver(CONFIG, "test", SocketCommunicators(amid))
    staged = receiver.receive(sender.publish(weights(1.0, 3_000_000), V1))
    assert (staged.tensors["a"] == 1.0).all()
    receiver.close()


def test_a_host_is_checked_and_where_to_keep_is_an_option():
    assert WeightsConfig().kept_in is KeptIn.host
    with pytest.raises(WeightChannelError, match=r"weights\.host"):
        BroadcastSender(WeightsConfig(host="192.0.2.7"), "test", SocketCommunicators())

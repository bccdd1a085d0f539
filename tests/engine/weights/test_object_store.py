"""What is particular to object_store; the rest is in test_conformance."""

import threading

import numpy as np
import pytest
import torch

from engine.config.cluster import WeightsConfig
from engine.errors import WeightChannelError
from engine.records.version import PolicyVersion
from engine.weights.object_store import LocalStore, ObjectStoreReceiver, ObjectStoreSender

V1, V2, V3 = (PolicyVersion(0, updates) for updates in (1, 2, 3))
CONFIG = WeightsConfig(bucket_mib=1)


class CountingStore(LocalStore):
    """Notes which thread puts, and lets a put wait."""

    def __init__(self):
        super().__init__()
        self.putters, self.sizes = set(), []

    def put(self, shelf, data):
        self.putters.add(threading.current_thread())
        self.sizes.append(len(data))
        super().put(shelf, data)


@pytest.fixture
def store():
    store = CountingStore()
    yield store
    store.close()


def weights(value=1.0):
    return {"a": torch.full((700_000,), value)}


def test_each_bucket_is_an_object_that_another_thread_puts(store):
    sender = ObjectStoreSender(CONFIG, "run", store)
    manifest = sender.publish(weights(), V1)
    assert store.sizes == [2**20, 2**20, 2_800_000 - 2**21]
    assert threading.current_thread() not in store.putters
    assert manifest.location.startswith("run/")


def test_a_buffer_is_filled_again_only_when_it_was_put(store):
    tensors = {"a": torch.arange(3_000_000, dtype=torch.int32)}
    sender, receiver = ObjectStoreSender(CONFIG, "run", store), ObjectStoreReceiver(CONFIG, LocalStore())
    put, lock = store.put, threading.Lock()

    def slow(shelf, data):
        with lock:
            threading.Event().wait(0.01)
        put(shelf, data)

    store.put = slow
    assert torch.equal(receiver.receive(sender.publish(tensors, V1)).tensors["a"], tensors["a"])


def test_at_most_two_versions_stand_and_none_after_close(store):
    sender = ObjectStoreSender(CONFIG, "run", store)
    for version in (V1, V2, V3):
        sender.publish(weights(), version)
        assert len(LocalStore._shelves) <= 2
    sender.close()
    assert LocalStore._shelves == {}


def test_a_store_that_is_full_leaves_nothing_of_the_version(store):
    sender = ObjectStoreSender(CONFIG, "run", store)
    put = store.put

    def full(shelf, data):
        if len(store.sizes) == 2:
            raise WeightChannelError("full")
        put(shelf, data)

    store.put = full
    with pytest.raises(WeightChannelError, match="full"):
        sender.publish(weights(), V1)
    assert LocalStore._shelves == {}
    store.put = put
    assert sender.publish(weights(), V1).version == V1


def test_an_object_of_another_size_or_none_is_refused(store):
    sender, receiver = ObjectStoreSender(CONFIG, "run", store), ObjectStoreReceiver(CONFIG, LocalStore())
    manifest = sender.publish(weights(), V1)
    objects = LocalStore._shelves[manifest.location]
    last = objects.pop()
    with pytest.raises(WeightChannelError, match="object 2 of 2 is not on the shelf"):
        receiver.receive(manifest)
    objects.append(last[:-64])
    with pytest.raises(WeightChannelError, match=r"bucket 2: \d+ bytes came"):
        receiver.receive(manifest)
    objects[2] = last
    assert receiver.receive(manifest).version == V1


def test_who_reads_a_shelf_goes_on_when_it_is_cleared(store):
    store.put("shelf", np.ones(8, np.uint8))
    shelf = store.look("shelf", 1.0)
    store.clear("shelf")
    assert shelf.take(0).sum() == 8
    with pytest.raises(WeightChannelError, match="gone"):
        store.look("shelf", 1.0)

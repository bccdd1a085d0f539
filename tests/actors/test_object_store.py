"""Shelves in Ray's object store: against the few words of Ray that are used, and once over Ray itself."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from actors.cluster import ask
from actors.object_store import Librarian, RayStore, open_object_store
from actors.ray_cluster import RayCluster
from engine.config.cluster import ClusterConfig, ClusterKind, WeightChannelKind, WeightsConfig
from engine.config.run import RunConfig
from engine.errors import ActorError, WeightChannelError
from engine.records.version import PolicyVersion
from engine.weights.object_store import LocalStore, ObjectStoreReceiver, ObjectStoreSender

V1, V2, V3 = (PolicyVersion(0, updates) for updates in (1, 2, 3))


class RayError(Exception):
    """As ray.exceptions has it."""


class Ray:
    """One process with named actors; a reference is a list of one object."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self):
        self.actors, self.fetched, self.full = {}, [], False

    def remote(self, **options):
        assert options["num_cpus"] == 0

        def options_of(factory, name):
            def start():
                actor = factory()
                words = {word: SimpleNamespace(remote=getattr(actor, word)) for word in ("keep", "lend", "clear")}
                self.actors[name] = SimpleNamespace(**words)
                return self.actors[name]

            return SimpleNamespace(remote=start)

        return lambda factory: SimpleNamespace(options=lambda name: options_of(factory, name))

    def put(self, data):
        if self.full:
            raise RayError("the object store is full")
        return (data.copy(),)

    def get(self, token, timeout):
        assert timeout >= 0
        return token[0] if isinstance(token, tuple) else token

    def wait(self, references, num_returns, timeout, fetch_local):
        assert (num_returns, timeout, fetch_local) == (len(references), 0, True)
        self.fetched += references

    def get_actor(self, name):
        if name not in self.actors:
            raise ValueError(f"no actor {name}")
        return self.actors[name]

    def kill(self, actor, no_restart):
        self.actors = {name: one for name, one in self.actors.items() if one is not actor}


@pytest.fixture
def ray():
    return Ray()


def store_of(ray):
    store = RayStore.__new__(RayStore)
    store._ray, store._deadline_s, store._name, store._librarian = ray, 5.0, "", None
    return store


def test_what_one_puts_another_takes_and_all_of_it_sets_out_at_once(ray):
    sending, reading = store_of(ray), store_of(ray)
    for value in (1, 2):
        sending.put("run/x/0.1-1", np.full(8, value, np.uint8))
    shelf = reading.look("run/x/0.1-1", 5.0)
    assert [int(shelf.take(index)[0]) for index in (0, 1)] == [1, 2]
    assert len(ray.fetched) == 2
    with pytest.raises(WeightChannelError, match="bucket 2 did not arrive"):
        shelf.take(2)
    sending.clear("run/x/0.1-1")
    with pytest.raises(WeightChannelError, match="gone"):
        reading.look("run/x/0.1-1", 5.0)


def test_a_reader_follows_the_learner_into_its_next_life(ray):
    first, reading = store_of(ray), store_of(ray)
    first.put("run/x/0.1-1", np.ones(8, np.uint8))
    reading.look("run/x/0.1-1", 5.0)
    first.close()
    first.close()
    with pytest.raises(WeightChannelError, match="learner's end of the weight channel is gone"):
        store_of(ray).look("run/x/0.1-1", 5.0)
    second = store_of(ray)
    second.put("run/y/1.1-1", np.ones(8, np.uint8))
    assert reading.look("run/y/1.1-1", 5.0).take(0).sum() == 8


def test_a_full_store_is_named(ray):
    ray.full = True
    with pytest.raises(WeightChannelError, match=r"cannot be put.*cluster\.object_store_mib"):
        store_of(ray).put("run/x/0.1-1", np.ones(8, np.uint8))


def test_the_store_is_where_the_actors_are(monkeypatch):
    def config(kind, cluster):
        return SimpleNamespace(weights=WeightsConfig(channel=kind), cluster=ClusterConfig(kind=cluster))

    # A stand-in: the real one reads its token settings once, when it is imported, and later tests need them.
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    assert open_object_store(RunConfig()) is None
    assert isinstance(open_object_store(config(WeightChannelKind.object_store, ClusterKind.serial)), LocalStore)
    assert isinstance(open_object_store(config(WeightChannelKind.object_store, ClusterKind.ray)), RayStore)


def test_a_librarian_keeps_order():
    librarian = Librarian()
    librarian.keep("a", [1])
    librarian.keep("a", [2])
    assert librarian.lend("a") == [1, 2]
    librarian.clear("a")
    librarian.clear("a")
    assert librarian.lend("a") is None


CONFIG = WeightsConfig(bucket_mib=1, deadline_s=60.0)


class Sending:
    """A learner's end in a process of its own."""

    def __init__(self):
        torch.set_num_threads(1)
        self._sender = ObjectStoreSender(CONFIG, "run", RayStore(60.0))

    def publish(self, version):
        return self._sender.publish({"a": torch.full((700_000,), float(version.updates))}, version)

    def close(self):
        self._sender.close()


class Reading:
    """A generator's end in a process of its own."""

    def __init__(self):
        torch.set_num_threads(1)
        self._receiver = ObjectStoreReceiver(CONFIG, RayStore(60.0))

    def receive(self, manifest):
        staged = self._receiver.receive(manifest)
        assert (staged.tensors["a"] == manifest.version.updates).all()
        return staged.digest

    def close(self):
        self._receiver.close()


@pytest.mark.ray
@pytest.mark.slow
def test_over_ray():
    cluster = RayCluster(ClusterConfig(kind=ClusterKind.ray, dashboard=False, object_store_mib=80), "object-store")
    deadline = {"deadline_s": 120.0}
    try:
        for name, factory in (("sending", Sending), ("reading", Reading), ("dying", Reading)):
            cluster.start(name, factory, {})
        first = ask(cluster, "sending", "publish", V1, **deadline)
        for name in ("reading", "dying"):
            assert ask(cluster, name, "receive", first, **deadline) == first.digest
        cluster.kill("dying")
        second = ask(cluster, "sending", "publish", V2, **deadline)
        third = ask(cluster, "sending", "publish", V3, **deadline)
        with pytest.raises(WeightChannelError, match="gone"):
            ask(cluster, "reading", "receive", first, **deadline)
        for manifest in (second, third):
            assert ask(cluster, "reading", "receive", manifest, **deadline) == manifest.digest
        with pytest.raises(ActorError):
            ask(cluster, "dying", "receive", third, **deadline)
        cluster.start("joining", Reading, {})
        assert ask(cluster, "joining", "receive", third, **deadline) == third.digest
    finally:
        cluster.close()

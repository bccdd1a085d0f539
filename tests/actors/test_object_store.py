"""Shelves in Ray's object store: against the few words of Ray that are used, and once over Ray itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from actors import object_store
from actors.cluster import ask
from actors.object_store import Librarian, RayStore, librarian_of, open_object_store
from actors.ray_cluster import RayCluster
from engine.config.cluster import ClusterConfig, ClusterKind, WeightChannelKind, WeightsConfig
from engine.config.run import RunConfig
from engine.errors import ActorError, WeightChannelError
from engine.records.version import PolicyVersion
from engine.weights.object_store import LocalStore, ObjectStoreReceiver, ObjectStoreSender
from tests.engine.weights.ends import of_every_type, same_bits

V1, V2, V3, V4, V5, V6, V7 = (PolicyVersion(0, updates) for updates in range(1, 8))
CONFIG = WeightsConfig(bucket_mib=1, deadline_s=60.0)


class RayError(Exception):
    """As ray.exceptions has it."""


class ObjectStoreFullError(RayError):
    """As ray.exceptions has it."""


class OutOfDiskError(RayError):
    """As ray.exceptions has it."""


class ActorDiedError(RayError):
    """As ray.exceptions has it."""


class GetTimeoutError(RayError):
    """As ray.exceptions has it."""


class Ray:
    """One process with named actors; a reference is a list of one object."""

    exceptions = SimpleNamespace(**{error.__name__: error for error in (
        RayError, ObjectStoreFullError, OutOfDiskError, ActorDiedError, GetTimeoutError)})
    util = SimpleNamespace(scheduling_strategies=SimpleNamespace(
        NodeAffinitySchedulingStrategy=lambda node, soft: ("on", node, soft)))

    def __init__(self):
        self.actors, self.fetched, self.put_error, self.answer_error = {}, [], None, None

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "a1")

    def remote(self, **options):
        assert options["num_cpus"] == 0
        assert options["scheduling_strategy"] == ("on", "a1", False), "beside the learner, or nowhere"

        def options_of(factory, name):
            def start():
                actor = factory()
                words = {word: SimpleNamespace(remote=getattr(actor, word)) for word in ("keep", "lend", "clear")}
                self.actors[name] = SimpleNamespace(**words)
                return self.actors[name]

            return SimpleNamespace(remote=start)

        return lambda factory: SimpleNamespace(options=lambda name: options_of(factory, name))

    def put(self, data):
        if self.put_error:
            raise self.put_error
        return (data.copy(),)

    def get(self, token, timeout):
        assert timeout >= 0
        if self.answer_error:
            raise self.answer_error
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


@pytest.mark.parametrize("error", [ObjectStoreFullError("full"), OutOfDiskError("no disk")])
def test_a_full_store_is_named(ray, error):
    ray.put_error = error
    with pytest.raises(WeightChannelError, match=r"cannot be put.*cluster\.object_store_mib"):
        store_of(ray).put("run/x/0.1-1", np.ones(8, np.uint8))


@pytest.mark.parametrize("error", [ActorDiedError("its node left"), GetTimeoutError("late")])
def test_a_librarian_that_is_gone_or_silent_is_a_death_of_the_learner(ray, error):
    sender = ObjectStoreSender(CONFIG, "run", store_of(ray))
    sender.publish({"a": torch.ones(3)}, V1)
    ray.answer_error = error
    with pytest.raises(ActorError, match=r"librarian of the weight channel.*is gone or does not") as caught:
        sender.publish({"a": torch.ones(3)}, V2)
    assert caught.value.actor == "learner", "so the next life of the run begins"
    assert "object_store_mib" not in str(caught.value)


def test_a_lost_connection_to_the_store_is_a_death_of_the_learner(ray):
    ray.put_error = OSError("Broken pipe")
    with pytest.raises(ActorError, match=r"learner during publish.*Broken pipe"):
        store_of(ray).put("run/x/0.1-1", np.ones(8, np.uint8))


def test_who_is_dead_holds_nothing_that_could_be_cleared(ray):
    store = store_of(ray)
    store.put("run/x/0.1-1", np.ones(8, np.uint8))
    ray.answer_error = ActorDiedError("killed")
    store.clear("run/x/0.1-1")
    ray.answer_error = GetTimeoutError("late")
    with pytest.raises(ActorError, match="does not answer"):
        store.clear("run/x/0.1-1")


def test_the_store_is_where_the_actors_are(monkeypatch):
    # The real one imports Ray, which reads its environment only then: too early for the tests that start it.
    monkeypatch.setattr(object_store, "RayStore", lambda deadline_s: ("Ray's", deadline_s))

    def config(kind, cluster):
        return SimpleNamespace(weights=WeightsConfig(channel=kind), cluster=ClusterConfig(kind=cluster))

    assert open_object_store(RunConfig()) is None
    assert isinstance(open_object_store(config(WeightChannelKind.object_store, ClusterKind.serial)), LocalStore)
    assert open_object_store(config(WeightChannelKind.object_store, ClusterKind.ray)) == ("Ray's", 60.0)


def test_a_librarian_keeps_order():
    librarian = Librarian()
    librarian.keep("a", [1])
    librarian.keep("a", [2])
    assert librarian.lend("a") == [1, 2]
    librarian.clear("a")
    librarian.clear("a")
    assert librarian.lend("a") is None


class SpoilingStore(RayStore):
    """Flips a byte of every second object, when told to."""

    spoils, count = False, 0

    def put(self, shelf, data):
        self.count += 1
        if self.spoils and self.count % 2 == 0:
            data = data.copy()
            data[17] ^= 1
        super().put(shelf, data)


class Sending:
    """A learner's end in a process of its own."""

    def __init__(self):
        torch.set_num_threads(1)
        self._store = SpoilingStore(60.0)
        self._sender = ObjectStoreSender(CONFIG, "run", self._store)

    def publish(self, version, what="two buckets", spoils=False):
        self._store.spoils, self._store.count = spoils, 0
        return self._sender.publish(weights(what, version), version)

    def close(self):
        self._sender.close()


class Reading:
    """A generator's end in a process of its own."""

    def __init__(self):
        torch.set_num_threads(1)
        self._receiver = ObjectStoreReceiver(CONFIG, RayStore(60.0))
        self._served = None

    def receive(self, manifest, what="two buckets"):
        staged = self._receiver.receive(manifest)
        sent = weights(what, manifest.version)
        assert set(staged.tensors) == set(sent)
        assert [name for name, tensor in sent.items() if not same_bits(staged.tensors[name], tensor)] == []
        if what == "tied":
            assert staged.tensors["embed"].data_ptr() == staged.tensors["head"].data_ptr()
        self._served = staged
        return staged.digest

    def serves(self):
        return (self._served.tensors["a"] == self._served.version.updates).all().item(), self._served.version

    def close(self):
        self._receiver.close()


def weights(what, version):
    """The same in every process."""
    if what == "every type":
        return of_every_type()
    if what == "tied":
        shared = torch.arange(200.0).view(50, 4)
        return {"embed": shared, "head": shared}
    return {"a": torch.full((500_000,), float(version.updates))}


@pytest.mark.ray
@pytest.mark.slow
def test_over_ray():
    """Ray starts once for all of this: it takes seconds."""
    cluster = RayCluster(ClusterConfig(kind=ClusterKind.ray, dashboard=False, object_store_mib=80), "object-store")
    deadline = {"deadline_s": 120.0}
    reading, dying, joining = "generator-0#1", "generator-1#1", "generator-1#2"

    def publish(version, *how):
        return ask(cluster, "learner", "publish", version, *how, **deadline)

    def receive(name, manifest, *what):
        return ask(cluster, name, "receive", manifest, *what, **deadline)

    try:
        for name, factory in (("learner", Sending), (reading, Reading), (dying, Reading)):
            cluster.start(name, factory, {})
        first = publish(V1)
        assert len(first.buckets) == 2
        for name in (reading, dying):
            assert receive(name, first) == first.digest
        cluster.kill(dying)
        second, third = publish(V2), publish(V3)
        with pytest.raises(WeightChannelError, match="gone"):
            receive(reading, first)
        for manifest in (second, third):
            assert receive(reading, manifest) == manifest.digest
        cluster.start(joining, Reading, {})
        assert receive(joining, third) == third.digest
        with pytest.raises(WeightChannelError, match=r"version 0\.4, bucket 1 of 2: digest"):
            receive(reading, publish(V4, "two buckets", True))
        assert ask(cluster, reading, "serves", **deadline) == (True, V3)
        for version, what in ((V5, "every type"), (V6, "tied")):
            manifest = publish(version, what)
            assert receive(reading, manifest, what) == manifest.digest
        assert manifest.num_bytes < 2 * 200 * 4, "tied weights travel once"
        cluster._ray.kill(cluster._ray.get_actor(librarian_of(manifest.location)))
        with pytest.raises(ActorError, match="actor learner during publish: the librarian"):
            publish(V7)
        with pytest.raises(WeightChannelError, match="the learner's end of the weight channel is gone"):
            receive(joining, manifest, "tied")
    finally:
        cluster.close()

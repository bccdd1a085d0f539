"""What every weight channel promises, asked of each of them."""

import os
import signal
import threading
from dataclasses import replace

import pytest
import torch

from engine.errors import WeightChannelError
from engine.records.manifest import Manifest
from engine.records.version import PolicyVersion
from engine.weights.layout import version_digest
from tests.engine.weights.ends import ALL, CHANNELS, of_every_type, same_bits

V1, V2, V3, V4 = (PolicyVersion(0, updates) for updates in (1, 2, 3, 4))


@pytest.fixture(params=CHANNELS)
def ends(request, tmp_path):
    return ALL[request.param](tmp_path)


@pytest.fixture
def sender(ends):
    sender = ends.sender()
    yield sender
    sender.close()


@pytest.fixture
def receiver(ends, sender):
    receiver = ends.receiver()
    yield receiver
    receiver.close()


def some_weights(seed=0, size=300_000):
    return {"weight": torch.randn(size, generator=torch.Generator().manual_seed(seed)), "bias": torch.ones(3)}


def test_every_type_arrives_bit_for_bit(sender, receiver):
    tensors = of_every_type()
    staged = receiver.receive(sender.publish(tensors, V1))
    assert set(staged.tensors) == set(tensors)
    assert [name for name, tensor in tensors.items() if not same_bits(staged.tensors[name], tensor)] == []


def test_tensors_cross_buckets_and_equal_weights_have_equal_digests(sender, receiver):
    sizes = {"a": 3, "b": 700_001, "c": 0, "d": 262_144, "e": 1, "f": 900_000}
    tensors = {name: torch.randn(size).bfloat16() for name, size in sizes.items()}
    manifests = [sender.publish(tensors, version) for version in (V1, V2)]
    for manifest in manifests:
        staged = receiver.receive(manifest)
        assert (staged.version, staged.digest) == (manifest.version, manifest.digest)
        assert all(same_bits(staged.tensors[name], tensor) for name, tensor in tensors.items())
    assert len(manifests[0].buckets) == 4
    assert manifests[0].digest == manifests[1].digest


def test_floating_weights_are_cast_on_the_way(ends):
    sender = ends.sender(torch.bfloat16)
    receiver = ends.receiver()
    tensors = {"a": torch.nn.Parameter(torch.randn(9)), "steps": torch.arange(4)}
    staged = receiver.receive(sender.publish(tensors, V1))
    receiver.close()
    sender.close()
    assert same_bits(staged.tensors["a"], tensors["a"].to(torch.bfloat16))
    assert staged.tensors["steps"].dtype is torch.int64


def test_tied_weights_travel_once_and_arrive_tied(sender, receiver):
    shared = torch.randn(50, 4)
    manifest = sender.publish({"embed": shared, "head": shared}, V1)
    assert manifest.num_bytes < 2 * shared.nbytes
    staged = receiver.receive(manifest)
    assert staged.tensors["embed"].data_ptr() == staged.tensors["head"].data_ptr()


class Gathered(dict):
    """Weights that are gathered one at a time."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.fetched = []

    def described(self):
        return {name: tensor.to("meta") for name, tensor in self.items()}

    def __getitem__(self, name):
        self.fetched.append(name)
        return super().__getitem__(name).clone()


def test_weights_that_must_be_gathered_are_fetched_once_in_order(sender, receiver):
    tensors = {name: torch.randn(200_000) for name in "dbca"}
    lazy = Gathered(tensors)
    staged = receiver.receive(sender.publish(lazy, V1))
    assert lazy.fetched == ["a", "b", "c", "d"]
    assert all(same_bits(staged.tensors[name], tensor) for name, tensor in tensors.items())


def test_later_changes_of_the_weights_do_not_travel(sender, receiver):
    weights = some_weights()
    manifest = sender.publish(weights, V1)
    weights["weight"].zero_()
    assert same_bits(receiver.receive(manifest).tensors["weight"], some_weights()["weight"])


def test_a_flipped_byte_is_refused_and_earlier_weights_stay(ends, sender, receiver):
    served = receiver.receive(sender.publish(some_weights(1), V1))
    manifest = sender.publish(some_weights(2), V2)
    ends.spoil(manifest)
    with pytest.raises(WeightChannelError, match=r"version 0\.2, bucket 1 of 2: digest"):
        receiver.receive(manifest)
    assert same_bits(served.tensors["weight"], some_weights(1)["weight"])


def test_a_refused_version_can_be_published_again(ends, sender, receiver):
    manifest = sender.publish(some_weights(1), V1)
    broken = replace(manifest, buckets=(replace(manifest.buckets[0], digest="0" * 16), *manifest.buckets[1:]))
    broken = replace(broken, digest=version_digest(broken.buckets))
    with pytest.raises(WeightChannelError, match=r"bucket 0 of 2.*publish the version again"):
        receiver.receive(broken)
    sender.retire(V1)
    assert receiver.receive(sender.publish(some_weights(1), V1)).version == V1


def test_a_manifest_that_is_not_ours_is_refused(sender, receiver):
    manifest = sender.publish(some_weights(), V1)
    for wrong in (replace(manifest, digest="0" * 32), replace(manifest, channel="pigeon")):
        with pytest.raises(WeightChannelError, match=r"version 0\.1"):
            receiver.receive(wrong)
    assert receiver.receive(manifest).version == V1


def test_two_versions_in_quick_succession_both_arrive_and_one_may_be_skipped(sender, receiver):
    manifests = [sender.publish(some_weights(seed), version) for seed, version in ((1, V1), (2, V2))]
    for seed, manifest in enumerate(manifests, start=1):
        assert same_bits(receiver.receive(manifest).tensors["weight"], some_weights(seed)["weight"])
    sender.publish(some_weights(3), V3)
    newest = sender.publish(some_weights(4), V4)
    assert same_bits(receiver.receive(newest).tensors["weight"], some_weights(4)["weight"])


def test_a_receiver_that_is_late_is_told_and_goes_on(sender, receiver):
    first = receiver.receive(sender.publish(some_weights(0), V1))
    late = sender.publish(some_weights(1), V2)
    sender.publish(some_weights(2), V3)
    current = sender.publish(some_weights(3), V4)
    with pytest.raises(WeightChannelError, match=r"(?s)gone.*ask for the current manifest"):
        receiver.receive(late)
    assert same_bits(first.tensors["weight"], some_weights(0)["weight"])
    assert receiver.receive(current).version == V4


def test_a_retired_version_is_gone_and_retiring_twice_is_harmless(sender, receiver):
    manifest = sender.publish(some_weights(), V1)
    sender.retire(V1)
    sender.retire(V1)
    with pytest.raises(WeightChannelError, match="gone"):
        receiver.receive(manifest)


def test_a_joining_receiver_gets_the_current_version(ends, sender, receiver):
    receiver.receive(sender.publish(some_weights(1), V1))
    current = sender.publish(some_weights(2), V2)
    receiver.receive(current)
    joining = ends.receiver()
    staged = joining.receive(current)
    joining.close()
    assert same_bits(staged.tensors["weight"], some_weights(2)["weight"])


def test_several_receivers_at_once(ends, sender, receiver):
    others = [ends.receiver() for _ in range(2)]
    found: dict[int, object] = {}

    def take(index: int, who: object, manifest: Manifest) -> None:
        found[index] = who.receive(manifest)

    for updates in (1, 2, 3):
        found.clear()
        manifest = sender.publish(some_weights(updates), PolicyVersion(0, updates))
        threads = [threading.Thread(target=take, args=(index, who, manifest))
                   for index, who in enumerate((receiver, *others))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert [same_bits(found[i].tensors["weight"], some_weights(updates)["weight"]) for i in range(3)] == [True] * 3
    for other in others:
        other.close()


def test_staging_that_is_held_is_not_written_over(sender, receiver):
    held = [receiver.receive(sender.publish(some_weights(u), PolicyVersion(0, u))).tensors["weight"][5:]
            for u in (1, 2, 3)]
    assert all(same_bits(part, some_weights(u)["weight"][5:]) for u, part in enumerate(held, start=1))


def test_received_weights_outlive_both_ends(ends):
    sender, receiver = ends.sender(), ends.receiver()
    staged = receiver.receive(sender.publish(some_weights(), V1))
    receiver.close()
    sender.close()
    assert same_bits(staged.tensors["weight"], some_weights()["weight"])


def test_a_stamp_names_one_set_of_weights(sender):
    sender.publish(some_weights(), V1)
    with pytest.raises(WeightChannelError, match="stands already"):
        sender.publish(some_weights(1), V1)


def test_nothing_is_left_after_close(ends):
    threads = set(threading.enumerate())
    before = ends.left()
    sender, receiver = ends.sender(), ends.receiver()
    for updates in (1, 2, 3):
        receiver.receive(sender.publish(some_weights(updates), PolicyVersion(0, updates)))
    for end in (receiver, sender, receiver, sender):
        end.close()
    assert ends.left() == before
    assert set(threading.enumerate()) == threads
    with pytest.raises(WeightChannelError, match="closed"):
        sender.publish(some_weights(), V4)


def dying_child(ends, manifest):
    """A process that receives and is killed amid it, or right after; its process id."""
    if ends.apart:
        dying = ends.receiver()
        dying.receive(manifest)
        dying._process.kill()
        dying._process.stdout.close()
        return dying._process.pid
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            ends.receiver(lambda bucket, index: os.kill(os.getpid(), signal.SIGKILL)).receive(manifest)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    return child


def test_a_receiver_that_dies_harms_nobody(ends, sender, receiver):
    if not ends.between_processes:
        pytest.skip("this store lives in one process; tests/actors/test_object_store.py kills one over Ray")
    manifest = sender.publish(some_weights(1), V1)
    _, status = os.waitpid(dying_child(ends, manifest), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert same_bits(receiver.receive(manifest).tensors["weight"], some_weights(1)["weight"])
    assert receiver.receive(sender.publish(some_weights(2), V2)).version == V2

import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.config.cluster import WeightsConfig
from engine.errors import WeightChannelError
from engine.records.codec import encode
from engine.records.version import PolicyVersion
from engine.weights import shared_memory
from engine.weights.shared_memory import SharedMemoryReceiver, SharedMemorySender

V1, V2, V3, V4 = (PolicyVersion(0, updates) for updates in (1, 2, 3, 4))

READER = """
import sys
from pathlib import Path
from engine.config.cluster import WeightsConfig
from engine.records.codec import decode
from engine.weights.shared_memory import SharedMemoryReceiver

manifest = decode(Path(sys.argv[2]).read_bytes())
receiver = SharedMemoryReceiver(WeightsConfig(folder=sys.argv[1]), "run")
while True:
    print(receiver.receive(manifest).digest, flush=True)
"""

@pytest.fixture
def config(tmp_path):
    return WeightsConfig(folder=str(tmp_path), bucket_mib=1)


@pytest.fixture
def sender(config):
    sender = SharedMemorySender(config, "run")
    yield sender
    sender.close()


@pytest.fixture
def receiver(config):
    receiver = SharedMemoryReceiver(config, "run")
    yield receiver
    receiver.close()


def some_weights(seed=0, size=300_000):
    return {
        "weight": torch.randn(size, generator=torch.Generator().manual_seed(seed)),
        "bias": torch.ones(3),
    }


def flip_byte(path, offset):
    with Path(path).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_bytes_arrive_as_they_were_sent(sender, receiver, dtype):
    tensors = {"a": torch.randn(37, 5).mul(9).to(dtype), "b": torch.zeros((), dtype=dtype)}
    staged = receiver.receive(sender.publish(tensors, V1))
    for name, tensor in tensors.items():
        assert staged.tensors[name].dtype is dtype
        assert staged.tensors[name].shape == tensor.shape
        assert torch.equal(
            staged.tensors[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8)
        )


def test_special_floats_keep_their_bits(sender, receiver):
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    staged = receiver.receive(sender.publish({"a": odd}, V1))
    assert torch.equal(staged.tensors["a"].view(torch.int32), odd.view(torch.int32))


def test_floating_weights_are_cast_on_the_way(config, receiver):
    sender = SharedMemorySender(config, "run", torch.bfloat16)
    tensors = {"a": torch.nn.Parameter(torch.randn(9)), "steps": torch.arange(4)}
    staged = receiver.receive(sender.publish(tensors, V1))
    sender.close()
    assert torch.equal(staged.tensors["a"], tensors["a"].detach().to(torch.bfloat16))
    assert staged.tensors["steps"].dtype is torch.int64


def test_tied_weights_travel_once_and_arrive_tied(sender, receiver):
    shared = torch.randn(50, 4)
    manifest = sender.publish({"embed": shared, "head": shared}, V1)
    assert Path(manifest.location).stat().st_size == manifest.num_bytes < 2 * shared.nbytes
    staged = receiver.receive(manifest)
    assert set(staged.tensors) == {"embed", "head"}
    assert staged.tensors["embed"].data_ptr() == staged.tensors["head"].data_ptr()


def test_a_flipped_byte_is_refused_and_earlier_weights_stay(sender, receiver):
    first = some_weights(1)
    served = receiver.receive(sender.publish(first, V1))
    manifest = sender.publish(some_weights(2), V2)
    flip_byte(manifest.location, 2**20 + 17)
    with pytest.raises(WeightChannelError, match=r"version 0\.2, bucket 1 of 2"):
        receiver.receive(manifest)
    assert all(torch.equal(served.tensors[name], tensor) for name, tensor in first.items())
    flip_byte(manifest.location, 2**20 + 17)
    assert receiver.receive(manifest).version == V2


def test_a_truncated_file_is_refused(sender, receiver):
    manifest = sender.publish(some_weights(), V1)
    os.truncate(manifest.location, 1000)
    with pytest.raises(WeightChannelError, match="1000 bytes on disk"):
        receiver.receive(manifest)


def test_a_file_that_shrinks_while_it_is_read_is_refused(sender, receiver, monkeypatch):
    manifest = sender.publish(some_weights(), V1)
    read = os.preadv

    def shrinking(fd, buffers, offset):
        os.truncate(manifest.location, 1000)
        return read(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", shrinking)
    with pytest.raises(WeightChannelError, match="bucket 0"):
        receiver.receive(manifest)


def test_a_changed_manifest_is_refused(sender, receiver):
    manifest = sender.publish(some_weights(), V1)
    with pytest.raises(WeightChannelError, match="manifest digest"):
        receiver.receive(replace(manifest, digest="0" * 32))
    with pytest.raises(WeightChannelError, match="this receiver reads"):
        receiver.receive(replace(manifest, location="/elsewhere/v0.1.weights"))


def test_at_most_two_versions_stand_and_a_late_reader_is_told(sender, receiver):
    manifests = [sender.publish(some_weights(seed), version) for seed, version in enumerate((V1, V2, V3))]
    folder = Path(manifests[0].location).parent
    assert sorted(path.name for path in folder.iterdir()) == ["v0.2.weights", "v0.3.weights"]
    with pytest.raises(WeightChannelError, match=r"version 0\.1 is gone .* ask for the current manifest"):
        receiver.receive(manifests[0])
    assert receiver.receive(manifests[2]).version == V3
    sender.retire(V2)
    sender.retire(V2)
    with pytest.raises(WeightChannelError, match="gone"):
        receiver.receive(manifests[1])


def test_a_retired_file_is_written_over_unless_somebody_reads_it(sender, receiver, monkeypatch):
    inodes = [Path(sender.publish(some_weights(1), V1).location).stat().st_ino]
    old = sender.publish(some_weights(2), V2)
    manifest = sender.publish(some_weights(3), V3)
    inodes += [Path(m.location).stat().st_ino for m in (old, manifest)]
    assert inodes[2] == inodes[0] != inodes[1]
    assert receiver.receive(manifest).version == V3
    read = os.preadv

    def slow(fd, buffers, offset):
        monkeypatch.setattr(os, "preadv", read)
        found = sender.publish(some_weights(4), V4)
        assert Path(found.location).stat().st_ino not in inodes
        return read(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", slow)
    staged = receiver.receive(old)
    assert torch.equal(staged.tensors["weight"], some_weights(2)["weight"])


def test_a_reader_that_comes_while_its_file_is_written_over_is_told(sender, receiver, monkeypatch):
    late = sender.publish(some_weights(1), V1)
    sender.publish(some_weights(2), V2)
    lock = fcntl.flock

    def overtaken(fd, how):
        monkeypatch.setattr(fcntl, "flock", lock)
        sender.publish(some_weights(3), V3)
        return lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", overtaken)
    with pytest.raises(WeightChannelError, match=r"version 0\.1 is gone"):
        receiver.receive(late)


def test_a_spare_of_another_size_is_not_used(sender, receiver):
    sizes = [300, 300, 500, 300]
    for updates, size in enumerate(sizes, start=1):
        staged = receiver.receive(sender.publish(some_weights(updates, size), PolicyVersion(0, updates)))
        assert torch.equal(staged.tensors["weight"], some_weights(updates, size)["weight"])
    manifest = sender.publish(some_weights(5, 300), PolicyVersion(0, 5))
    os.truncate(manifest.location, 10)
    for updates in (6, 7):
        staged = receiver.receive(sender.publish(some_weights(updates, 300), PolicyVersion(0, updates)))
    assert torch.equal(staged.tensors["weight"], some_weights(7, 300)["weight"])


def test_versions_in_quick_succession_do_not_write_over_each_other(sender, receiver):
    staged = []
    for seed, version in enumerate((V1, V2, V3)):
        staged.append(receiver.receive(sender.publish(some_weights(seed), version)))
    for seed, version in enumerate(staged):
        assert torch.equal(version.tensors["weight"], some_weights(seed)["weight"])


def test_staging_memory_is_reused_once_no_tensor_views_it(sender, receiver):
    old = receiver.receive(sender.publish(some_weights(1), V1)).tensors["weight"]
    first = old.data_ptr()
    current = receiver.receive(sender.publish(some_weights(2), V2))
    assert current.tensors["weight"].data_ptr() != first
    kept = old[5:]
    del old
    assert receiver.receive(sender.publish(some_weights(3), V3)).tensors["weight"].data_ptr() != first
    assert torch.equal(kept, some_weights(1)["weight"][5:])
    del kept
    reused = {receiver.receive(sender.publish(some_weights(4), V4)).tensors["weight"].data_ptr()}
    assert len(receiver._staging) <= 2
    assert current.tensors["weight"].data_ptr() not in reused


def test_two_buffers_suffice_when_old_weights_are_let_go(sender, receiver):
    places, served = set(), None
    for updates in range(1, 7):
        served = receiver.receive(sender.publish(some_weights(updates), PolicyVersion(0, updates)))
        places.add(served.tensors["weight"].data_ptr())
    assert len(places) == 2


def test_received_weights_outlive_writer_and_receiver(config):
    sender, receiver = SharedMemorySender(config, "run"), SharedMemoryReceiver(config, "run")
    staged = receiver.receive(sender.publish(some_weights(), V1))
    sender.close()
    receiver.close()
    assert torch.equal(staged.tensors["weight"], some_weights()["weight"])


def test_a_stamp_names_one_set_of_weights(sender):
    sender.publish(some_weights(), V1)
    with pytest.raises(WeightChannelError, match="stands already"):
        sender.publish(some_weights(1), V1)


def test_too_little_room_is_named_before_anything_is_written(sender, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "free_bytes", lambda path: 1000)
    with pytest.raises(WeightChannelError, match=r"1000 bytes free, one version needs 12\d+: enlarge"):
        sender.publish(some_weights(), V1)
    assert list((tmp_path / "perilune-run").iterdir()) == []


def test_a_disk_that_fills_meanwhile_is_the_same_error(sender, tmp_path, monkeypatch):
    def full(fd, offset, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WeightChannelError, match=r"bytes free, one version needs"):
        sender.publish(some_weights(), V1)
    assert list((tmp_path / "perilune-run").iterdir()) == []


def test_nothing_is_left_after_close(config, tmp_path):
    sender = SharedMemorySender(config, "run")
    sender.publish(some_weights(), V1)
    sender.close()
    sender.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WeightChannelError, match="closed"):
        sender.publish(some_weights(), V2)


def test_a_reader_killed_amid_receiving_harms_nobody(sender, receiver, tmp_path):
    manifest = sender.publish(some_weights(), V1)
    record = tmp_path / "manifest"
    record.write_bytes(encode(manifest))
    command = [sys.executable, "-c", READER, str(tmp_path), str(record)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline().strip() == manifest.digest
        reader.kill()
        reader.wait(timeout=60)
    assert receiver.receive(manifest).digest == manifest.digest
    for seed, version in enumerate((V2, V3)):
        assert receiver.receive(sender.publish(some_weights(seed), version)).version == version

"""What is particular to cuda_ipc, over files in place of device memory; the rest is in test_conformance."""

import pytest
import torch

from engine.config.cluster import WeightsConfig
from engine.errors import WeightChannelError
from engine.records.version import PolicyVersion
from engine.weights.cuda_ipc import CudaIpcReceiver, CudaIpcSender
from tests.engine.weights.file_memory import FileMemory

V1, V2, V3, V4 = (PolicyVersion(0, updates) for updates in (1, 2, 3, 4))


@pytest.fixture
def config(tmp_path):
    return WeightsConfig(folder=str(tmp_path), bucket_mib=1)


@pytest.fixture
def memory(tmp_path):
    return FileMemory(tmp_path)


@pytest.fixture
def sender(config, memory):
    sender = CudaIpcSender(config, "run", memory)
    yield sender
    sender.close()


def weights(value, size=1000):
    return {"a": torch.full((size,), value)}


def test_a_retired_piece_is_written_over_and_one_of_another_size_is_freed(sender, memory):
    for updates in (1, 2, 3, 4):
        sender.publish(weights(1.0), PolicyVersion(0, updates))
    assert memory.calls.count("allocate") == 2
    sender.publish(weights(1.0, 5000), PolicyVersion(0, 5))
    assert (memory.calls.count("allocate"), memory.calls.count("free")) == (3, 1)


class Slow(FileMemory):
    """Runs ``amid`` while a piece is open."""

    def view(self, address, num_bytes):
        self.amid()
        return super().view(address, num_bytes)


def test_a_piece_that_is_read_is_left_to_its_reader(config, sender, memory, tmp_path):
    slow = Slow(tmp_path)
    slow.amid = lambda: [sender.publish(weights(float(v.updates)), v) for v in (V2, V3, V4)]
    staged = CudaIpcReceiver(config, "run", slow).receive(sender.publish(weights(1.0), V1))
    assert (staged.tensors["a"] == 1.0).all()
    assert memory.calls.count("allocate") == 3
    sender.publish(weights(5.0), PolicyVersion(0, 5))
    assert memory.calls.count("allocate") == 3


def test_the_sender_waits_for_the_device_and_the_receiver_lets_go(config, sender, memory, tmp_path):
    manifest = sender.publish(weights(1.0), V1)
    assert memory.calls == ["allocate", "synchronize"]
    reading = FileMemory(tmp_path)
    CudaIpcReceiver(config, "run", reading).receive(manifest)
    assert reading.calls == ["open", "synchronize", "shut"]


def test_another_gpu_is_named(config, sender, tmp_path):
    receiver = CudaIpcReceiver(config, "run", FileMemory(tmp_path, "another"))
    with pytest.raises(WeightChannelError, match=r"lies on GPU card, this receiver uses another.*weights.channel=nccl"):
        receiver.receive(sender.publish(weights(1.0), V1))


def test_a_piece_is_given_back_when_packing_fails(sender, memory):
    class Broken(dict):
        def described(self):
            return dict(self)

        def __getitem__(self, name):
            raise RuntimeError("a rank was lost")

    with pytest.raises(RuntimeError, match="a rank was lost"):
        sender.publish(Broken(weights(1.0)), V1)
    assert memory.calls == ["allocate", "free"]


def test_another_runs_manifest_is_refused(config, sender, tmp_path):
    with pytest.raises(WeightChannelError, match="one config and run id"):
        CudaIpcReceiver(config, "other", FileMemory(tmp_path)).receive(sender.publish(weights(1.0), V1))

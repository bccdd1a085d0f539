"""Both ends of every channel that can be tried here, and what a test does to the bytes between them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.config.cluster import WeightsConfig
from engine.weights.broadcast import BroadcastReceiver, BroadcastSender
from engine.weights.cuda_driver import CudaDriver
from engine.weights.cuda_ipc import CudaIpcReceiver, CudaIpcSender
from engine.weights.nccl import CHANNEL as NCCL
from engine.weights.nccl import NcclCommunicators
from engine.weights.object_store import LocalStore, ObjectStoreReceiver, ObjectStoreSender
from engine.weights.shared_memory import SharedMemoryReceiver, SharedMemorySender
from tests.engine.weights.file_memory import FileMemory
from tests.engine.weights.remote_receiver import RemoteReceiver
from tests.engine.weights.socket_communicators import SocketCommunicators

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
          torch.bool, torch.int64, torch.int8, torch.uint8)


def of_every_type():
    """Tensors of every type and of odd shapes and values, always the same."""
    made = torch.Generator().manual_seed(0)
    tensors = {str(dtype): (torch.randn(37, 5, generator=made) * 9).to(dtype) for dtype in DTYPES}
    return tensors | {"scalar": torch.tensor(1.5), "none": torch.zeros(0, 3),
                      "turned": torch.randn(4, 6, generator=made).T,
                      "odd": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])}


def same_bits(left, right):
    raw = [tensor.detach().cpu().contiguous().view(-1).view(torch.uint8) for tensor in (left, right)]
    return left.dtype is right.dtype and left.shape == right.shape and torch.equal(*raw)


class Ends:
    """One channel: makes senders and receivers, flips bytes, and says what is left."""

    between_processes = True
    apart = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = WeightsConfig(folder=str(folder), bucket_mib=1, deadline_s=20.0, gather_s=0.05)

    def spoil(self, manifest):
        """Flip a byte of the second bucket on its way."""
        self.flip(Path(manifest.location), 2**20 + 17)

    def flip(self, path, offset):
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))

    def left(self):
        return sorted(path.name for path in self.folder.iterdir())


class SharedMemory(Ends):
    def sender(self, dtype=None):
        return SharedMemorySender(self.config, "run", dtype)

    def receiver(self, amid=None):
        return SharedMemoryReceiver(self.config, "run")


class ObjectStore(Ends):
    between_processes = False

    def sender(self, dtype=None):
        return ObjectStoreSender(self.config, "run", LocalStore(), dtype)

    def receiver(self, amid=None):
        return ObjectStoreReceiver(self.config, LocalStore())

    def spoil(self, manifest):
        data = LocalStore._shelves[manifest.location][1]
        data.flags.writeable = True
        data[17] ^= 1

    def left(self):
        return list(LocalStore._shelves)


class Broadcast(Ends):
    """The protocol of channel nccl, over sockets."""

    def __init__(self, folder):
        super().__init__(folder)
        self.spoiled = False

    def sender(self, dtype=None):
        return BroadcastSender(self.config, NCCL, SocketCommunicators(), dtype)

    def receiver(self, amid=None):
        def flipping(bucket, index):
            if self.spoiled and index == 1:
                bucket[17] ^= 1

        return BroadcastReceiver(self.config, NCCL, SocketCommunicators(amid or flipping))

    def spoil(self, manifest):
        self.spoiled = True


class CudaIpc(Ends):
    """The protocol of channel cuda_ipc, over files."""

    def memory(self):
        return FileMemory(self.folder)

    def sender(self, dtype=None):
        return CudaIpcSender(self.config, "run", self.memory(), dtype)

    def receiver(self, amid=None):
        return CudaIpcReceiver(self.config, "run", self.memory())

    def spoil(self, manifest):
        self.flip(Path(bytes.fromhex(manifest.location.rpartition("#")[2]).decode()), 2**20 + 17)


class Apart(Ends):
    """A channel whose receivers live in processes of their own, each on the GPU it may have."""

    apart = True
    device = 0

    def receiver(self, amid=None):
        return RemoteReceiver(type(self).__name__, self.folder, self.device)

    def sender(self, dtype=None):
        self.made = self.sender_here(dtype)
        return self.made


class BroadcastApart(Apart):
    def sender_here(self, dtype):
        return BroadcastSender(self.config, NCCL, SocketCommunicators(), dtype)

    def receiver_here(self):
        return BroadcastReceiver(self.config, NCCL, SocketCommunicators())

    def spoil(self, manifest):
        self.made._kept[manifest.version].buckets[1][17] ^= 1


class Nccl(BroadcastApart):
    """The real one: on a GPU of their own where there are two, else on the same."""

    device = min(1, max(0, torch.cuda.device_count() - 1))

    def sender_here(self, dtype):
        return BroadcastSender(self.config, NCCL, NcclCommunicators(), dtype)

    def receiver_here(self):
        return BroadcastReceiver(self.config, NCCL, NcclCommunicators())


class CudaIpcApart(Apart):
    """The real one, on one GPU."""

    def sender_here(self, dtype):
        return CudaIpcSender(self.config, "run", CudaDriver(), dtype)

    def receiver_here(self):
        return CudaIpcReceiver(self.config, "run", CudaDriver())

    def spoil(self, manifest):
        piece = self.made._pieces[manifest.version]
        self.made._memory.view(piece.address, piece.num_bytes)[2**20 + 17] ^= 1
        self.made._memory.synchronize()


HERE: dict[str, Callable[[Path], Ends]] = {
    "shared_memory": SharedMemory, "object_store": ObjectStore, "nccl over sockets": Broadcast,
    "cuda_ipc over files": CudaIpc,
}
APART = {kind.__name__: kind for kind in (BroadcastApart, Nccl, CudaIpcApart)}
ALL = HERE | APART

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
NO_CUPY = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="no cupy")
MARKS = {"BroadcastApart": [pytest.mark.slow], "Nccl": [NO_GPU, NO_CUPY], "CudaIpcApart": [NO_GPU]}
CHANNELS = [pytest.param(name, marks=MARKS.get(name, [])) for name in ALL]

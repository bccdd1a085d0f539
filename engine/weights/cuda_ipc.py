"""Channel ``cuda_ipc``: weights through memory of one GPU on which learner and generators both live.

The sender packs a version into a piece of device memory of its own and says how to open it in the manifest's
``location``; a receiver opens the piece, copies it into its staging memory, verifies that copy and lets go. At most
two versions stand. A small file stands for each of them in the run's folder, as the whole bytes do in shared memory:
a reader holds a shared lock on it while it copies, and the sender writes its next version over a retired piece only
if nobody reads it. The kernel drops the lock of a reader that dies, so its death harms nobody.

The calls to CUDA have been written from ``cuda.h``; the protocol around them is tested with memory of the host.
``python -m tools.check_gpu --parts cuda_ipc`` runs it between two processes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.config.cluster import WeightsConfig
from engine.errors import WeightChannelError
from engine.records.manifest import Bucket, Manifest
from engine.records.version import PolicyVersion
from engine.weights.channel_folder import folder_of_run, held_for_reading, own_folder
from engine.weights.cuda_driver import DeviceMemory
from engine.weights.layout import (
    StagedWeights,
    check_manifest,
    make_room,
    plan_entries,
    staged_tensors,
    total_bytes,
    version_digest,
)
from engine.weights.packing import Packer, bucket_ranges
from engine.weights.word_digest import hexadecimal, verify_words, word_digest

CHANNEL = "cuda_ipc"


@dataclass(frozen=True, slots=True)
class _Piece:
    """Device memory, and the file that stands for the version in it."""

    address: int
    num_bytes: int
    path: Path
    fd: int


class CudaIpcSender:
    """The learner's end."""

    def __init__(self, config: WeightsConfig, run_id: str, memory: DeviceMemory,
                 dtype: torch.dtype | None = None) -> None:
        """Make the run's folder.

        Args:
            config: ``folder`` and ``bucket_mib``.
            run_id: names the run's folder; only one living sender may hold it.
            memory: the device.
            dtype: type that floating tensors take on the way; None keeps each tensor's own.

        Raises:
            WeightChannelError: the folder cannot be written, or another living process sends for this run.
        """
        self._memory, self._dtype, self._bucket_mib = memory, dtype, config.bucket_mib
        self._folder = folder_of_run(config, run_id)
        self._lock = own_folder(config, run_id)
        self._pieces: dict[PolicyVersion, _Piece] = {}
        self._retired: list[_Piece] = []
        self._published = 0
        self._closed = False

    def publish(self, tensors: Mapping[str, Tensor], version: PolicyVersion) -> Manifest:
        """Pack one version and describe it; the oldest of more than two is retired first.

        Raises:
            WeightChannelError: the version stands already, or the device has too little memory.
        """
        make_room(version, self._pieces, self._closed, self.retire)
        entries = plan_entries(tensors, self._dtype)
        size = total_bytes(entries)
        ranges = bucket_ranges(size, self._bucket_mib)
        address = self._place(size)
        try:
            digests = self._pack(Packer(entries, tensors), self._memory.view(address, size), ranges)
            self._pieces[version] = piece = self._stand(address, size, version)
        except BaseException:
            self._memory.free(address)
            raise
        buckets = tuple(Bucket(*where, digest) for where, digest in zip(ranges, digests, strict=True))
        handle = self._memory.handle(address).hex()
        location = f"{piece.path}#{self._memory.identity}#{handle}"
        return Manifest(version, entries, buckets, location, CHANNEL, version_digest(buckets))

    def retire(self, version: PolicyVersion) -> None:
        """Take a version away; readers that have it open go on. Unknown or retired versions are no error."""
        piece = self._pieces.pop(version, None)
        if piece is not None:
            piece.path.unlink(missing_ok=True)
            self._retired.append(piece)

    def close(self) -> None:
        """Free the memory and remove the run's folder; twice is harmless.

        What somebody still reads is freed by the end of this process.
        """
        if self._closed:
            return
        self._closed = True
        for version in list(self._pieces):
            self.retire(version)
        for piece in self._unread():
            self._memory.free(piece.address)
        for piece in self._retired:
            os.close(piece.fd)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.release(remove=True)

    def _pack(self, packer: Packer, run: Tensor, ranges: list[tuple[int, int]]) -> list[str]:
        """Write the run; the digests of its buckets."""
        found = []
        for offset, size in ranges:
            packer.fill(run[offset : offset + size])
            found.append(word_digest(run[offset : offset + size], ranges[0][1]))
        digests = hexadecimal(found)
        self._memory.synchronize()  # another process reads it by no stream of ours
        return digests

    def _place(self, num_bytes: int) -> int:
        """Device memory for the next version: that of a retired one which nobody reads, or new."""
        free, chosen = self._unread(), None
        for piece in free:
            if chosen is None and piece.num_bytes == num_bytes:
                chosen = piece.address
            else:
                self._memory.free(piece.address)
        return self._memory.allocate(num_bytes) if chosen is None else chosen

    def _unread(self) -> list[_Piece]:
        """Retired pieces that nobody reads, off the books."""
        found, left = [], []
        for piece in self._retired:
            try:
                fcntl.flock(piece.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                left.append(piece)
                continue
            os.close(piece.fd)
            found.append(piece)
        self._retired = left
        return found

    def _stand(self, address: int, num_bytes: int, version: PolicyVersion) -> _Piece:
        self._published += 1
        path = self._folder / f"v{version}-{self._published}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return _Piece(address, num_bytes, path, fd)


class CudaIpcReceiver:
    """A generator's end."""

    def __init__(self, config: WeightsConfig, run_id: str, memory: DeviceMemory) -> None:
        self._folder, self._memory = folder_of_run(config, run_id), memory

    def receive(self, manifest: Manifest) -> StagedWeights:
        """Copy one version into staging memory on the same device and verify the copy.

        Raises:
            WeightChannelError: the manifest contradicts itself or is not this run's, the version was retired, it lies
                on another GPU, or a bucket's bytes do not match its digest. Versions received before stay as they are.
        """
        check_manifest(manifest)
        name, identity, handle = ["", "", *manifest.location.rsplit("#", 2)][-3:]
        path = Path(name)
        if manifest.channel != CHANNEL or path.parent != self._folder:
            raise WeightChannelError(
                f"version {manifest.version} lies at {manifest.channel}:{name}, this receiver reads "
                f"{CHANNEL}:{self._folder}: open sender and receiver with one config and run id"
            )
        if identity != self._memory.identity:
            raise WeightChannelError(
                f"version {manifest.version} lies on GPU {identity}, this receiver uses {self._memory.identity}: put "
                "them on one GPU, or choose weights.channel=nccl"
            )
        staging = torch.empty(manifest.num_bytes, dtype=torch.uint8, device=self._memory.device)
        with held_for_reading(path, manifest.version):
            address = self._memory.open(bytes.fromhex(handle))
            try:
                staging.copy_(self._memory.view(address, manifest.num_bytes))
            finally:
                self._memory.synchronize()
                self._memory.shut(address)
        verify_words(manifest, staging)
        return StagedWeights(manifest.version, manifest.digest, staged_tensors(manifest, staging))

    def close(self) -> None:
        """Nothing is held between versions."""

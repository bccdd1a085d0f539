"""Weights through files in shared memory, one folder per run.

``<weights.folder>/perilune-<run_id>/v<lineage>.<updates>.weights`` holds one version, at most two stand at
once. The writer fills a hidden file and renames it when its digests are known; a reader copies the bytes
into staging memory of its own and verifies that copy, the very bytes it will serve. A reader owns nothing
in the folder, so its death harms nobody. It holds a shared lock on the file while it copies; the writer
writes its next version over a retired file that nobody reads, whose pages need not be found and cleared
anew, and leaves one that is read to its readers.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.config.cluster import WeightsConfig
from engine.errors import WeightChannelError
from engine.records.manifest import Manifest
from engine.records.version import PolicyVersion
from engine.run_folder import free_bytes, is_disk_full
from engine.weights.channel_folder import folder_of_run, held_for_reading, own_folder
from engine.weights.layout import (
    StagedWeights,
    check_manifest,
    make_room,
    plan_entries,
    range_digests,
    staged_tensors,
    total_bytes,
    version_digest,
    write_buckets,
)
from engine.weights.staging import StagingPool

CHANNEL = "shared_memory"


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the sender, mapped."""

    fd: int
    memory: Tensor
    """[bytes] uint8"""


class SharedMemorySender:
    """The learner's end: writes versions, unlinks old ones.

    Args:
        config: ``folder`` and ``bucket_mib``.
        run_id: names the run's folder; only one living sender may hold it.
        dtype: type that floating tensors take on the way; None keeps each tensor's own.

    Raises:
        WeightChannelError: the folder cannot be written, or another living process sends for this run.
    """

    def __init__(self, config: WeightsConfig, run_id: str, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype
        self._bucket_mib = config.bucket_mib
        self._folder = folder_of_run(config, run_id)
        self._lock = own_folder(config, run_id)
        self._files: dict[PolicyVersion, tuple[Path, _File]] = {}
        self._spare: _File | None = None
        self._closed = False

    def publish(self, tensors: Mapping[str, Tensor], version: PolicyVersion) -> Manifest:
        """Write one version and describe it; the oldest of more than two is retired first.

        Args:
            tensors: named weights on any device; tensors that share memory are stored once.
            version: must not have been published before.

        Raises:
            WeightChannelError: there is too little room, or the version stands already.
        """
        make_room(version, self._files, self._closed, self.retire)
        entries = plan_entries(tensors, self._dtype)
        size = total_bytes(entries)
        path = self._folder / f"v{version}.weights"
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            file = self._reserve(temporary, size)
            buckets = write_buckets(entries, tensors, file.memory, self._bucket_mib)
            temporary.rename(path)
            fcntl.flock(file.fd, fcntl.LOCK_UN)
        except OSError as error:
            if is_disk_full(error):
                raise self._no_room(size) from error
            raise WeightChannelError(f"version {version} cannot be written: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        self._files[version] = (path, file)
        return Manifest(version, entries, buckets, str(path), CHANNEL, version_digest(buckets))

    def retire(self, version: PolicyVersion) -> None:
        """Take a version away; readers that opened it go on. Unknown or retired versions are no error."""
        if version not in self._files:
            return
        path, file = self._files.pop(version)
        try:
            fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.rename(self._spare_path)
        except (BlockingIOError, FileNotFoundError):  # it is being read, or somebody removed it
            path.unlink(missing_ok=True)
            os.close(file.fd)
            return
        self._drop_spare()
        self._spare = file

    def close(self) -> None:
        """Remove the run's folder and lock; twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._drop_spare()
        for _, file in self._files.values():
            os.close(file.fd)
        self._files.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.release(remove=True)

    @property
    def _spare_path(self) -> Path:
        return self._folder / ".spare.weights"

    def _drop_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare.fd)
        self._spare = None

    def _reserve(self, path: Path, num_bytes: int) -> _File:
        """A file of this size with every page allocated: the spare one, or a new one."""
        spare = self._spare
        if spare is not None and spare.memory.numel() == num_bytes == os.fstat(spare.fd).st_size:
            self._spare_path.rename(path)
            self._spare = None
            return spare
        self._drop_spare()
        self._spare_path.unlink(missing_ok=True)
        if free_bytes(self._folder) < num_bytes:
            raise self._no_room(num_bytes)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # A full tmpfs kills whoever touches an unallocated page with SIGBUS; here it is an error.
            os.posix_fallocate(fd, 0, num_bytes)
            mapped = mmap.mmap(fd, num_bytes)
        except OSError:
            os.close(fd)
            raise
        return _File(fd, torch.frombuffer(memoryview(mapped), dtype=torch.uint8))

    def _no_room(self, need: int) -> WeightChannelError:
        folder = self._folder.parent
        return WeightChannelError(
            f"{folder} has {free_bytes(folder)} bytes free, one version needs {need}: enlarge it (docker "
            "run --shm-size, or mount -o remount,size=...), or name a larger weights.folder"
        )


class SharedMemoryReceiver:
    """A generator's end: copies a version into staging memory and verifies the copy.

    Two staging buffers alternate while the caller serves one version and receives the next; a version whose
    tensors are still held is never written over.
    """

    def __init__(self, config: WeightsConfig, run_id: str) -> None:
        self._folder = folder_of_run(config, run_id)
        self._staging = StagingPool()

    def receive(self, manifest: Manifest) -> StagedWeights:
        """Bring one version into staging.

        Returns:
            Tensors over staging memory, every digest verified on those very bytes.

        Raises:
            WeightChannelError: the manifest contradicts itself or is not this run's, the version was
                retired, the file has another size, or a bucket's bytes do not match its digest. Versions
                received before stay as they are.
        """
        check_manifest(manifest)
        path = Path(manifest.location)
        if manifest.channel != CHANNEL or path.parent != self._folder:
            raise WeightChannelError(
                f"version {manifest.version} lies at {manifest.channel}:{path}, this receiver reads "
                f"{CHANNEL}:{self._folder}: open sender and receiver with one config and run id"
            )
        with held_for_reading(path, manifest.version) as fd:
            memory = self._read(fd, manifest)
        return StagedWeights(manifest.version, manifest.digest, staged_tensors(manifest, memory))

    def close(self) -> None:
        """Forget the staging memory; tensors that are still held keep theirs. Twice is harmless."""
        self._staging.clear()

    def _read(self, fd: int, manifest: Manifest) -> Tensor:
        size = os.fstat(fd).st_size
        if size != manifest.num_bytes:
            raise WeightChannelError(
                f"version {manifest.version} has {size} bytes on disk, expected {manifest.num_bytes}: "
                "truncated or overwritten; publish it again"
            )
        lease, memory = self._staging.lend(manifest.num_bytes)

        def read(done: int, end: int) -> None:
            # Read instead of mapped: a file cut short meanwhile is a short read, not a SIGBUS.
            while done < end and (count := os.preadv(fd, [lease[done:end]], done)):
                done += count
            lease[done:end] = bytes(end - done)  # what is missing must not be what lay here before

        buckets = manifest.buckets
        digests = range_digests(memory, [(bucket.offset, bucket.num_bytes) for bucket in buckets], read)
        for index, (bucket, found) in enumerate(zip(buckets, digests, strict=True)):
            if found != bucket.digest:
                raise WeightChannelError(
                    f"version {manifest.version}, bucket {index} of {len(buckets)}: digest {found}, expected "
                    f"{bucket.digest}; the bytes are refused, publish the version again"
                )
        return memory

"""Weights through files in shared memory, one folder per run.

``<weights.folder>/perilune-<run_id>/v<lineage>.<updates>.weights`` holds one version, at most two stand at
once. The writer fills a hidden file and renames it when its digests are known; a reader copies the bytes
into staging memory of its own and verifies that copy, the very bytes it will serve. A reader owns nothing
in the folder, so its death harms nobody, and a file it has opened outlives the writer's unlink. The lock
``perilune-<run_id>.lock`` dies with the writer: a folder whose lock is free is a dead run's leftover.
"""

from __future__ import annotations

import mmap
import os
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from engine.config.cluster import WeightsConfig
from engine.errors import WeightChannelError
from engine.records.manifest import Manifest
from engine.records.version import PolicyVersion
from engine.run_folder import FileLock, free_bytes, is_disk_full
from engine.weights.layout import (
    StagedWeights,
    bucket_digest,
    check_manifest,
    digest_buckets,
    plan_entries,
    staged_tensors,
    total_bytes,
    version_digest,
    write_entries,
)

CHANNEL = "shared_memory"
_PREFIX = "perilune-"
_KEPT_VERSIONS = 2


def clean_leftovers(folder: Path) -> list[str]:
    """Remove the folders of runs whose writer is dead; a living run holds its lock and is left alone.

    Returns:
        Names of the folders that went. Those of other users are skipped.
    """
    found = {entry.name.removesuffix(".lock") for entry in folder.glob(f"{_PREFIX}*")}
    cleaned = []
    for name in sorted(found):
        try:
            lock = FileLock.acquire(folder / f"{name}.lock")
        except PermissionError:
            continue
        if lock is not None:
            shutil.rmtree(folder / name, ignore_errors=True)
            lock.release(remove=True)
            cleaned.append(name)
    return cleaned


def _run_folder(config: WeightsConfig, run_id: str) -> Path:
    return Path(config.folder).absolute() / f"{_PREFIX}{run_id}"


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
        self._folder = _run_folder(config, run_id)
        try:
            self._lock = self._own_folder(run_id)
        except OSError as error:
            raise WeightChannelError(
                f"weights.folder={config.folder!r} cannot be used ({error}): give a writable folder"
            ) from error
        self._files: dict[PolicyVersion, Path] = {}
        self._closed = False

    def publish(self, tensors: Mapping[str, Tensor], version: PolicyVersion) -> Manifest:
        """Write one version and describe it; the oldest of more than two is retired first.

        Args:
            tensors: named weights on any device; tensors that share memory are stored once.
            version: must not have been published before.

        Raises:
            WeightChannelError: there is too little room, or the version stands already.
        """
        if self._closed:
            raise WeightChannelError(f"version {version}: the sender is closed; open a new one")
        if version in self._files:
            raise WeightChannelError(f"version {version} stands already: a stamp names one set of weights")
        while len(self._files) >= _KEPT_VERSIONS:
            self.retire(next(iter(self._files)))
        entries = plan_entries(tensors, self._dtype)
        size = total_bytes(entries)
        path = self._folder / f"v{version}.weights"
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            memory = self._reserve(temporary, size)
            write_entries(entries, tensors, memory)
            buckets = digest_buckets(memory, self._bucket_mib)
            temporary.rename(path)
        except OSError as error:
            if is_disk_full(error):
                raise self._no_room(size) from error
            raise WeightChannelError(f"version {version} cannot be written: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        self._files[version] = path
        return Manifest(version, entries, buckets, str(path), CHANNEL, version_digest(buckets))

    def retire(self, version: PolicyVersion) -> None:
        """Unlink a version; readers that opened it go on. Unknown or retired versions are no error."""
        path = self._files.pop(version, None)
        if path is not None:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the run's folder and lock; twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._files.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.release(remove=True)

    def _own_folder(self, run_id: str) -> FileLock:
        clean_leftovers(self._folder.parent)
        lock_file = self._folder.with_name(f"{self._folder.name}.lock")
        lock = FileLock.acquire(lock_file)
        if lock is None:
            raise WeightChannelError(
                f"run {run_id} already sends weights from process {FileLock.owner(lock_file)}: "
                "stop that process first"
            )
        try:
            self._folder.mkdir()
        except OSError:
            lock.release(remove=True)
            raise
        return lock

    def _reserve(self, path: Path, num_bytes: int) -> Tensor:
        """Mapped bytes [num_bytes] uint8 of a new file, with every page allocated."""
        if free_bytes(self._folder) < num_bytes:
            raise self._no_room(num_bytes)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # A full tmpfs kills whoever touches an unallocated page with SIGBUS; here it is an error.
            os.posix_fallocate(fd, 0, num_bytes)
            mapped = mmap.mmap(fd, num_bytes)
        finally:
            os.close(fd)
        return torch.frombuffer(memoryview(mapped), dtype=torch.uint8)

    def _no_room(self, need: int) -> WeightChannelError:
        folder = self._folder.parent
        return WeightChannelError(
            f"{folder} has {free_bytes(folder)} bytes free, one version needs {need}: enlarge it (docker "
            "run --shm-size, or mount -o remount,size=...), or name a larger weights.folder"
        )


class _Staging:
    """Private memory for one version, lent out and free again when its last tensor is gone."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._lease: weakref.ref[memoryview] | None = None

    @property
    def free(self) -> bool:
        return self._lease is None or self._lease() is None

    def lend(self) -> tuple[memoryview, Tensor]:
        # The tensor's storage keeps this memoryview alive, so its death is the end of every view.
        lease = memoryview(self._memory)
        self._lease = weakref.ref(lease)
        return lease, torch.frombuffer(lease, dtype=torch.uint8)


class SharedMemoryReceiver:
    """A generator's end: copies a version into staging memory and verifies the copy.

    Two staging buffers alternate while the caller serves one version and receives the next; a version whose
    tensors are still held is never written over.
    """

    def __init__(self, config: WeightsConfig, run_id: str) -> None:
        self._folder = _run_folder(config, run_id)
        self._stagings: list[_Staging] = []

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
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise WeightChannelError(
                f"version {manifest.version} is gone from {self._folder}: it was retired or its run ended; "
                "ask for the current manifest"
            ) from error
        except OSError as error:
            raise WeightChannelError(f"version {manifest.version}: cannot open {path}: {error}") from error
        try:
            memory = self._read(fd, manifest)
        finally:
            os.close(fd)
        return StagedWeights(manifest.version, manifest.digest, staged_tensors(manifest, memory))

    def close(self) -> None:
        """Forget the staging memory; tensors that are still held keep theirs. Twice is harmless."""
        self._stagings.clear()

    def _read(self, fd: int, manifest: Manifest) -> Tensor:
        size = os.fstat(fd).st_size
        if size != manifest.num_bytes:
            raise WeightChannelError(
                f"version {manifest.version} has {size} bytes on disk, expected {manifest.num_bytes}: "
                "truncated or overwritten; publish it again"
            )
        lease, memory = self._staging(manifest.num_bytes).lend()
        for index, bucket in enumerate(manifest.buckets):
            # Read instead of mapped: a file cut short meanwhile is a short read, not a SIGBUS.
            done, end = bucket.offset, bucket.offset + bucket.num_bytes
            while done < end and (count := os.preadv(fd, [lease[done:end]], done)):
                done += count
            found = bucket_digest(memory, bucket.offset, bucket.num_bytes)
            if done < end or found != bucket.digest:
                raise WeightChannelError(
                    f"version {manifest.version}, bucket {index} of {len(manifest.buckets)}: digest "
                    f"{found}, expected {bucket.digest}; the bytes are refused, publish the version again"
                )
        return memory

    def _staging(self, num_bytes: int) -> _Staging:
        fitting = [s for s in self._stagings if s.free and s.num_bytes == num_bytes]
        chosen = fitting[0] if fitting else _Staging(num_bytes)
        self._stagings = [s for s in self._stagings if not s.free] + [chosen]
        return chosen

"""Channel ``object_store``: weights as objects of a store that spans machines, one object a bucket.

The store is passed in (``actors/object_store.py``), since only actors know Ray; in one process it is a dictionary. A
version is a shelf of objects: while one bucket is put there the next is packed into another buffer, and a receiver
asks for the next while it verifies one. A receiver copies every object into staging memory of its own and verifies
that copy, so nobody holds an object for longer than it takes to read it. The sender clears the shelf of a version
when it is retired; at most two stand.
"""

from __future__ import annotations

import secrets
from bisect import bisect_right
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from engine.config.cluster import WeightsConfig
from engine.errors import WeightChannelError
from engine.records.manifest import Bucket, Manifest
from engine.records.version import PolicyVersion
from engine.weights.layout import (
    StagedWeights,
    check_manifest,
    make_room,
    plan_entries,
    range_digests,
    staged_tensors,
    total_bytes,
    version_digest,
)
from engine.weights.packing import Packer, bucket_ranges
from engine.weights.staging import StagingPool

CHANNEL = "object_store"

Bytes = NDArray[np.uint8]


class Shelf(Protocol):
    """The objects of one version, as a receiver sees them. Letting go of it lets go of them."""

    def take(self, index: int) -> Bytes:
        """One object, waited for; read-only. Any thread may ask.

        Raises:
            WeightChannelError: it is lost, or not here in time.
        """


class ObjectStore(Protocol):
    """A store of bytes that sender and receivers share."""

    def put(self, shelf: str, data: Bytes) -> None:
        """Append a copy of ``data`` to a shelf, named ``<run>/<sender>/<version>``.

        Raises:
            WeightChannelError: the store is full or gone.
        """

    def look(self, shelf: str, deadline_s: float) -> Shelf:
        """Open a shelf and begin to bring its objects here.

        Raises:
            WeightChannelError: there is none of that name.
        """

    def clear(self, shelf: str) -> None:
        """Let go of a shelf's objects; they vanish once no reader holds them. Unknown shelves are no error."""

    def close(self) -> None:
        """Let go of everything that was put; twice is harmless."""


class ObjectStoreSender:
    """The learner's end."""

    def __init__(self, config: WeightsConfig, run_id: str, store: ObjectStore,
                 dtype: torch.dtype | None = None) -> None:
        self._bucket_mib, self._dtype, self._store = config.bucket_mib, dtype, store
        self._run = f"{run_id}/{secrets.token_hex(4)}"
        self._shelves: dict[PolicyVersion, str] = {}
        self._published = 0
        self._closed = False

    def publish(self, tensors: Mapping[str, Tensor], version: PolicyVersion) -> Manifest:
        """Put one version on a shelf and describe it; the oldest of more than two is retired first.

        Raises:
            WeightChannelError: the store is full, or the version stands already.
        """
        make_room(version, self._shelves, self._closed, self.retire)
        entries = plan_entries(tensors, self._dtype)
        ranges = bucket_ranges(total_bytes(entries), self._bucket_mib)
        self._published += 1
        shelf = f"{self._run}/{version}-{self._published}"
        try:
            digests = self._put(shelf, Packer(entries, tensors), ranges)
        except BaseException:
            self._store.clear(shelf)
            raise
        self._shelves[version] = shelf
        buckets = tuple(Bucket(*where, digest) for where, digest in zip(ranges, digests, strict=True))
        return Manifest(version, entries, buckets, shelf, CHANNEL, version_digest(buckets))

    def retire(self, version: PolicyVersion) -> None:
        """Clear a version's shelf; who reads it goes on. Unknown or retired versions are no error."""
        if (shelf := self._shelves.pop(version, None)) is not None:
            self._store.clear(shelf)

    def close(self) -> None:
        """Clear every shelf; twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._shelves.clear()
        self._store.close()

    def _put(self, shelf: str, packer: Packer, ranges: list[tuple[int, int]]) -> list[str]:
        """Pack into two buffers that take turns: one is put by a thread while the other is filled."""
        most, digests = ranges[0][1], []
        pair = [np.empty(most, np.uint8) for _ in range(min(2, len(ranges)))]
        with ThreadPoolExecutor(1) as putter:
            open_puts: list[Future[None]] = []
            for index, (_, size) in enumerate(ranges):
                if len(open_puts) == len(pair):
                    open_puts.pop(0).result()
                buffer = pair[index % 2][:size]
                packer.fill(torch.from_numpy(buffer))
                digests.append(xxhash.xxh3_64_hexdigest(buffer.data))
                open_puts.append(putter.submit(self._store.put, shelf, buffer))
            for left in open_puts:
                left.result()
        return digests


class ObjectStoreReceiver:
    """A generator's end."""

    def __init__(self, config: WeightsConfig, store: ObjectStore) -> None:
        self._deadline_s, self._store = config.deadline_s, store
        self._staging = StagingPool()

    def receive(self, manifest: Manifest) -> StagedWeights:
        """Copy one version into staging memory and verify the copy.

        Raises:
            WeightChannelError: the manifest contradicts itself or is another channel's, the version was retired, an
                object has another size or does not arrive, or its bytes do not match its digest. Versions received
                before stay as they are.
        """
        check_manifest(manifest)
        if manifest.channel != CHANNEL:
            raise WeightChannelError(
                f"version {manifest.version} comes by channel {manifest.channel}, this receiver reads {CHANNEL}: open "
                "sender and receiver with one config"
            )
        shelf = self._store.look(manifest.location, self._deadline_s)
        lease, memory = self._staging.lend(manifest.num_bytes)
        offsets = [bucket.offset for bucket in manifest.buckets]
        objects: dict[int, Bytes] = {}

        def bring(first: int, last: int) -> None:
            index = bisect_right(offsets, first) - 1
            begin = first - offsets[index]
            if index not in objects:
                objects[index] = shelf.take(index)
            data = objects[index]
            if len(data) != manifest.buckets[index].num_bytes:
                raise WeightChannelError(
                    f"version {manifest.version}, bucket {index}: {len(data)} bytes came, expected "
                    f"{manifest.buckets[index].num_bytes}; publish the version again"
                )
            lease[first:last] = data[begin : begin + last - first].data

        ranges = [(bucket.offset, bucket.num_bytes) for bucket in manifest.buckets]
        for index, found in enumerate(range_digests(memory, ranges, bring)):
            if found != manifest.buckets[index].digest:
                raise WeightChannelError(
                    f"version {manifest.version}, bucket {index} of {len(ranges)}: digest {found}, expected "
                    f"{manifest.buckets[index].digest}; the bytes are refused, publish the version again"
                )
        return StagedWeights(manifest.version, manifest.digest, staged_tensors(manifest, memory))

    def close(self) -> None:
        """Forget the staging memory; tensors that are still held keep theirs. Twice is harmless."""
        self._staging.clear()


class _Row:
    """A shelf in this process."""

    def __init__(self, objects: list[Bytes]) -> None:
        self._objects = objects

    def take(self, index: int) -> Bytes:
        """See Shelf."""
        if index >= len(self._objects):
            raise WeightChannelError(f"object {index} of {len(self._objects)} is not on the shelf")
        return self._objects[index]


class LocalStore:
    """The store of a run whose actors live in one process."""

    _shelves: dict[str, list[Bytes]] = {}  # noqa: RUF012 - shared by the sender and receivers of this process

    def __init__(self) -> None:
        self._own: set[str] = set()

    def put(self, shelf: str, data: Bytes) -> None:
        """See ObjectStore."""
        copy = data.copy()
        copy.flags.writeable = False
        self._own.add(shelf)
        self._shelves.setdefault(shelf, []).append(copy)

    def look(self, shelf: str, deadline_s: float) -> _Row:
        """See ObjectStore."""
        if shelf not in self._shelves:
            raise WeightChannelError(f"{shelf} is gone: it was retired; ask for the current manifest")
        return _Row(list(self._shelves[shelf]))

    def clear(self, shelf: str) -> None:
        """See ObjectStore."""
        self._own.discard(shelf)
        self._shelves.pop(shelf, None)

    def close(self) -> None:
        """See ObjectStore."""
        for shelf in list(self._own):
            self.clear(shelf)

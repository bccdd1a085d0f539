"""Channels that broadcast: the learner's end packs and goes on, receivers come and are served in rounds.

A broadcast needs everybody at once, while ``publish`` returns a manifest that receivers get later, each with its
next order. So ``publish`` packs the version into memory of the channel's own, which no optimiser step changes, and
returns its manifest; a thread of the sender (``rounds.py``) waits for receivers at the address that the manifest's
``location`` names (``rendezvous.py``), joins with them in a communicator and broadcasts. A generator that just
started and the evaluator come by the same door. At most two versions stand, as in shared memory: a third publish
takes the oldest back, and who asks for it is told to ask for the current one.

Receivers hold their connection between versions. They verify the bytes that arrived, on the device on which they
will serve them; what does not verify is refused. Every wait of a receiver ends by ``weights.deadline_s``, and every
failure hangs up, by which the sender knows at once.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from engine.config.cluster import KeptIn, WeightsConfig
from engine.errors import WeightChannelError
from engine.records.manifest import Bucket, Manifest
from engine.records.version import PolicyVersion
from engine.weights.communicator import Communicator, Communicators
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
from engine.weights.rendezvous import Attendance, Message
from engine.weights.rounds import Publication, Rounds
from engine.weights.word_digest import hexadecimal, verify_words, word_digest

_FAILURES = (WeightChannelError, RuntimeError, OSError)


class BroadcastSender:
    """The learner's end of a channel over communicators."""

    def __init__(self, config: WeightsConfig, channel: str, communicators: Communicators,
                 dtype: torch.dtype | None = None) -> None:
        """Listen for receivers.

        Args:
            config: ``bucket_mib``, ``deadline_s``, ``gather_s``, ``host``, ``kept_in``.
            channel: what manifests name.
            communicators: makes the communicators.
            dtype: type that floating tensors take on the way; None keeps each tensor's own.

        Raises:
            WeightChannelError: ``weights.host`` cannot be listened on.
        """
        self._config, self._channel, self._dtype = config, channel, dtype
        self._device = communicators.device
        self._rounds = Rounds(config, communicators)
        self._kept: dict[PolicyVersion, Publication] = {}
        self._spare: Sequence[Tensor] = ()
        self._published = 0
        self._newest, self._before = "", ""
        self._closed = False

    def publish(self, tensors: Mapping[str, Tensor], version: PolicyVersion) -> Manifest:
        """Pack one version and describe it; the oldest of more than two is retired first.

        Returns without waiting for any receiver.

        Raises:
            WeightChannelError: the version stands already, or the sender has ended.
        """
        make_room(version, self._kept, self._closed, self.retire)
        entries = plan_entries(tensors, self._dtype)
        ranges = bucket_ranges(total_bytes(entries), self._config.bucket_mib)
        memory = self._memory([size for _, size in ranges])
        digests = self._pack(Packer(entries, tensors), memory)
        buckets = tuple(Bucket(*where, digest) for where, digest in zip(ranges, digests, strict=True))
        self._published += 1
        key = f"{version}-{self._published}"
        if str(version) != self._newest:
            self._newest, self._before = str(version), self._newest
        offered = Publication(key, str(version), self._before, memory)
        self._rounds.offer(offered)
        self._kept[version] = offered
        location = f"{self._rounds.location}/{key}"
        return Manifest(version, entries, buckets, location, self._channel, version_digest(buckets))

    def retire(self, version: PolicyVersion) -> None:
        """Take a version back; a round that goes on ends first. Unknown versions are no error."""
        if version not in self._kept:
            return
        publication = self._kept.pop(version)
        if self._rounds.withdraw(publication.key):
            self._spare = publication.buckets

    def close(self) -> None:
        """Abort what goes on and free the memory; twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._rounds.close()
        self._kept.clear()
        self._spare = ()

    def _memory(self, sizes: list[int]) -> Sequence[Tensor]:
        """A bucket of each size, [bytes] uint8, to keep a version in: those of a retired one, or new."""
        spare, self._spare = self._spare, ()
        if [len(bucket) for bucket in spare] == sizes:
            return spare
        del spare
        if self._device.type == "cpu" or self._config.kept_in is KeptIn.device:
            return [torch.empty(size, dtype=torch.uint8, device=self._device) for size in sizes]
        # One by one: torch makes pinned memory in powers of two, which a bucket is and a version is not.
        return [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in sizes]

    def _pack(self, packer: Packer, memory: Sequence[Tensor]) -> list[str]:
        """Write the run bucket by bucket; the digests of its buckets, computed on the device."""
        most, found = len(memory[0]), []
        here = memory[0].device == self._device
        staging = None if here else torch.empty(most, dtype=torch.uint8, device=self._device)
        for kept in memory:
            written = kept if staging is None else staging[: len(kept)]
            packer.fill(written)
            found.append(word_digest(written, most))
            if staging is not None:
                kept.copy_(written, non_blocking=True)
        return hexadecimal(found)  # which also waits for the copies before it on the same stream


class _Again(Exception):  # noqa: N818 - no error: the sender asks to begin anew
    """The sender gave the round up."""


class BroadcastReceiver:
    """A generator's end of a channel over communicators."""

    def __init__(self, config: WeightsConfig, channel: str, communicators: Communicators) -> None:
        """Connects with the first manifest.

        Args:
            config: ``deadline_s``.
            channel: what manifests must name.
            communicators: of the same kind as the sender's.
        """
        self._deadline_s, self._channel = config.deadline_s, channel
        self._communicators = communicators
        self._attendance: Attendance | None = None
        self._groups: dict[str, Communicator] = {}

    def receive(self, manifest: Manifest) -> StagedWeights:
        """Take part in a round for this version and verify what arrived.

        Returns:
            Tensors on the communicators' device, every digest verified on those very bytes.

        Raises:
            WeightChannelError: the manifest contradicts itself or is another channel's, the version was retired, the
                sender is gone, nothing arrived by the deadline, rounds failed one after the other, or a bucket's
                bytes do not match its digest. Versions received before stay as they are.
        """
        check_manifest(manifest)
        if manifest.channel != self._channel:
            raise WeightChannelError(
                f"version {manifest.version} comes by channel {manifest.channel}, this receiver reads "
                f"{self._channel}: open sender and receiver with one config"
            )
        deadline = time.monotonic() + self._deadline_s
        location, _, key = manifest.location.rpartition("/")
        try:
            memory = self._ask(self._attend(location, deadline), manifest, key, deadline)
        except OSError as error:
            self.close()
            raise WeightChannelError(
                f"version {manifest.version}: the learner's end is gone ({error}); ask for the current manifest"
            ) from error
        except BaseException:
            self.close()  # which tells the sender
            raise
        return StagedWeights(manifest.version, manifest.digest, staged_tensors(manifest, memory))

    def close(self) -> None:
        """Hang up and leave every communicator; tensors that are held keep their memory. Twice is harmless."""
        if self._attendance is not None:
            self._attendance.close()
        self._attendance = None
        self._keep(())

    def _attend(self, location: str, deadline: float) -> Attendance:
        if self._attendance is not None and self._attendance.location == location:
            return self._attendance
        self.close()  # another sender: the learner has begun a new life
        self._attendance = Attendance(location, deadline)
        return self._attendance

    def _ask(self, attendance: Attendance, manifest: Manifest, key: str, deadline: float) -> Tensor:
        """Ask, take part in rounds until one succeeds, and acknowledge."""
        attendance.say(want=key)
        failures = ["nobody else came"]
        while (left := deadline - time.monotonic()) > 0:
            heard = attendance.hear(left)
            if heard is None:
                continue
            if heard.get("key") == key and "start" in heard:
                memory = self._take_part(attendance, manifest, heard, deadline, failures)
                if memory is not None:
                    attendance.say(took=str(manifest.version))
                    return memory
            elif "again" in heard:
                failures.append(str(heard["again"]))
                if not heard.get("meeting"):  # else it has asked when it left that meeting
                    attendance.say(want=key)
            elif "gone" in heard:
                raise WeightChannelError(
                    f"version {manifest.version} is gone: it was retired; ask for the current manifest"
                )
            elif "failed" in heard:
                raise WeightChannelError(f"version {manifest.version} was not broadcast: {heard['failed']}")
        raise WeightChannelError(
            f"version {manifest.version} did not arrive within {self._deadline_s:g} s ({failures[-1]}): raise "
            "weights.deadline_s if transfers take that long"
        )

    def _take_part(self, attendance: Attendance, manifest: Manifest, start: Message, deadline: float,
                   failures: list[str]) -> Tensor | None:
        """One round; None where it failed and another one may follow."""
        meeting = str(start["start"])
        self._keep({meeting, *start["keep"]})

        def watch() -> None:
            if time.monotonic() > deadline:
                raise WeightChannelError(f"no broadcast within {self._deadline_s:g} s")
            heard = attendance.hear(0.0)
            if heard is not None and "again" in heard and heard.get("meeting") == meeting:
                failures.append(str(heard["again"]))
                raise _Again

        try:
            group = self._groups.get(meeting)
            if group is None:
                group = self._communicators.join(meeting, int(start["rank"]), int(start["ranks"]), watch)
                self._groups[meeting] = group
            memory = torch.empty(manifest.num_bytes, dtype=torch.uint8, device=self._communicators.device)
            group.receive([memory[b.offset : b.offset + b.num_bytes] for b in manifest.buckets], watch)
        except (*_FAILURES, _Again) as error:
            self._keep([other for other in self._groups if other != meeting])
            if not isinstance(error, _Again):
                failures.append(f"{type(error).__name__}: {error}")
            attendance.say(want=start["key"], broken=meeting, why=failures[-1][:1000])
            return None
        verify_words(manifest, memory)
        return memory

    def _keep(self, meetings: Collection[str]) -> None:
        """Leave the communicators of all other meetings."""
        for meeting in self._groups.keys() - set(meetings):
            self._groups.pop(meeting).abort()

"""How the tensors of one version lie in one run of bytes, and the digests that prove they arrived whole.

Name-sorted tensors at 64-byte offsets, tied ones once; the bytes are cut into buckets, each with an xxh3-64
digest; xxh3-128 over those is the digest of the version.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import xxhash
from torch import Tensor

from engine.errors import WeightChannelError
from engine.parallel import overwrite, share
from engine.records.manifest import Bucket, Manifest, TensorEntry
from engine.records.version import PolicyVersion

KEPT_VERSIONS = 2  # that a sender holds at once: the one being fetched, and the one that follows it
ALIGNMENT = 64
"""Bytes; a cache line, and enough for every vector load."""

_PIECE = 2**20
"""Bytes that are digested while the core that brought them still has them in its cache; a multiple of ALIGNMENT."""


@dataclass(frozen=True, slots=True, eq=False)
class StagedWeights:
    """One verified version, ready to be served.

    The staging memory is reused only once no tensor views it any more: keep a tensor and its bytes stay.
    """

    version: PolicyVersion
    digest: str
    """The manifest's digest, which the generator acknowledges."""
    tensors: Mapping[str, Tensor]
    """Every name, aliases included; tied names give the same tensor."""


@runtime_checkable
class LazyWeights(Protocol):
    """What a mapping of named weights says besides when fetching one of them is dear, as a gather is.

    Its ``[name]`` makes one whole tensor at every call. Who reads such a mapping looks up shapes and types here
    and fetches each tensor once, in the order of the layout.
    """

    def described(self) -> Mapping[str, Tensor]:
        """Name -> tensor on the meta device, in the shape and dtype of the weight; tied names give the same one."""
        ...


def described(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors to read shapes and types from, without fetching any weight."""
    return tensors.described() if isinstance(tensors, LazyWeights) else tensors


def _tied(tensors: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Name-sorted groups of names whose tensors are the same memory seen the same way."""
    groups: dict[tuple[object, ...], list[str]] = {}
    facts = described(tensors)
    for name in sorted(facts):
        t = facts[name]
        place = id(t) if t.is_meta else t.data_ptr()
        key = (place, t.device, t.dtype, t.shape, t.stride()) if t.numel() else (name,)
        groups.setdefault(key, []).append(name)
    return [tuple(names) for names in groups.values()]


def make_room(version: PolicyVersion, standing: Mapping[PolicyVersion, object], closed: bool,
              retire: Callable[[PolicyVersion], None]) -> None:
    """Before a sender publishes: the oldest of what stands is retired until one more fits.

    Raises WeightChannelError where the sender is closed, or the version stands already.
    """
    if closed:
        raise WeightChannelError(f"version {version}: the sender is closed; open a new one")
    if version in standing:
        raise WeightChannelError(f"version {version} stands already: a stamp names one set of weights")
    while len(standing) >= KEPT_VERSIONS:
        retire(next(iter(standing)))


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def plan_entries(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> tuple[TensorEntry, ...]:
    """Where each tensor goes; floating ones become ``dtype`` (None: stay as they are).

    Raises:
        WeightChannelError: there is no tensor.
    """
    if not tensors:
        raise WeightChannelError("no tensors to publish: give the policy's named weights")
    facts = described(tensors)
    entries, offset = [], 0
    for name, *aliases in _tied(tensors):
        source = facts[name]
        target = dtype if dtype is not None and source.is_floating_point() else source.dtype
        num_bytes = source.numel() * target.itemsize
        entries.append(
            TensorEntry(
                name,
                tuple(source.shape),
                str(target).removeprefix("torch."),
                offset,
                num_bytes,
                tuple(aliases),
            )
        )
        offset = _aligned(offset + num_bytes)
    return tuple(entries)


def total_bytes(entries: tuple[TensorEntry, ...]) -> int:
    """Bytes of the whole run, padding included; at least one alignment unit."""
    last = entries[-1]
    return max(ALIGNMENT, _aligned(last.offset + last.num_bytes))


def view_entry(entry: TensorEntry, memory: Tensor) -> Tensor:
    """The entry's tensor as a view over ``memory`` (uint8, one axis); copies nothing."""
    raw = memory[entry.offset : entry.offset + entry.num_bytes]
    return raw.view(torch_dtype(entry.dtype)).view(entry.shape)


def write_buckets(entries: tuple[TensorEntry, ...], tensors: Mapping[str, Tensor], memory: Tensor,
                  bucket_mib: int) -> tuple[Bucket, ...]:
    """Copy every tensor to its place, casting on the way: the only copy the sender makes.

    Lazy weights are fetched one after the other, each once, and let go as soon as it is copied.

    Returns:
        The bytes cut into buckets of ``bucket_mib`` MiB, each with its digest.
    """
    step, size = bucket_mib * 2**20, memory.numel()
    ranges = [(offset, min(step, size - offset)) for offset in range(0, size, step)]
    if isinstance(tensors, LazyWeights):
        for entry, tensor in in_layout_order(entries, tensors):
            _write_alone(entry, tensor, memory)
            del tensor
        digests = range_digests(memory, ranges)
    else:
        digests = range_digests(memory, ranges, _writer(entries, tensors, memory))
    return tuple(Bucket(*where, digest) for where, digest in zip(ranges, digests, strict=True))


def in_layout_order(entries: tuple[TensorEntry, ...],
                    tensors: Mapping[str, Tensor]) -> Iterator[tuple[TensorEntry, Tensor]]:
    """Each entry with its tensor, fetched when its turn comes and not kept here."""
    for entry in entries:
        yield entry, tensors[entry.name]


def _write_alone(entry: TensorEntry, tensor: Tensor, memory: Tensor) -> None:
    """Write one tensor and the padding behind it."""
    write = _writer((entry,), {entry.name: tensor}, memory)
    end = _aligned(entry.offset + entry.num_bytes)
    pieces = range(entry.offset, end, _PIECE)
    if len(pieces) <= 1:
        write(entry.offset, end)
    else:
        share(lambda first: write(first, min(first + _PIECE, end)), pieces)


def _writer(entries: tuple[TensorEntry, ...], tensors: Mapping[str, Tensor],
            memory: Tensor) -> Callable[[int, int], None]:
    """Writes the bytes (first, last + 1) of the run, whichever tensors and paddings they belong to."""
    starts = [entry.offset for entry in entries]
    sources = [tensors[entry.name].detach().contiguous().view(-1) for entry in entries]
    targets = [view_entry(entry, memory).view(-1) for entry in entries]

    def write(first: int, last: int) -> None:
        for index in range(max(bisect_right(starts, first) - 1, 0), bisect_left(starts, last)):
            entry, item = entries[index], targets[index].itemsize
            part = slice(max(first - entry.offset, 0) // item, (min(last - entry.offset, entry.num_bytes)) // item)
            overwrite(targets[index][part], sources[index][part])
            end = entry.offset + entry.num_bytes
            memory[max(end, first) : min(_aligned(end), last)].zero_()  # another version may have lain here

    return write


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that a manifest names.

    Raises:
        WeightChannelError: torch has no such dtype.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise WeightChannelError(f"manifest names dtype {name!r}, which torch {torch.__version__} lacks")
    return dtype


def range_digests(
    memory: Tensor, ranges: Sequence[tuple[int, int]], fill: Callable[[int, int], None] | None = None
) -> list[str]:
    """xxh3-64 of ranges (offset, bytes) of ``memory`` (uint8, one axis, CPU), hexadecimal.

    The ranges are shared among threads; ``fill`` brings bytes (first, last + 1), piece by piece, each before
    it is digested; None where they are there.
    """
    data = memory.numpy().data

    def one(where: tuple[int, int]) -> str:
        digest = xxhash.xxh3_64()
        for first in range(where[0], sum(where), _PIECE):
            last = min(first + _PIECE, sum(where))
            if fill is not None:
                fill(first, last)
            digest.update(data[first:last])
        return digest.hexdigest()

    return share(one, ranges)


def version_digest(buckets: tuple[Bucket, ...]) -> str:
    """xxh3-128 over the bucket digests in order, hexadecimal."""
    return xxhash.xxh3_128_hexdigest("".join(bucket.digest for bucket in buckets).encode())


def check_manifest(manifest: Manifest) -> None:
    """Refuse a manifest that contradicts itself, before any byte is read for it.

    Raises:
        WeightChannelError: its digest, bucket ranges or tensor ranges do not fit together.
    """
    if version_digest(manifest.buckets) != manifest.digest:
        raise WeightChannelError(
            f"version {manifest.version}: manifest digest {manifest.digest} is not that of its buckets; "
            "ask the learner for the manifest again"
        )
    end = 0
    for bucket in manifest.buckets:
        if bucket.offset != end:
            raise WeightChannelError(
                f"version {manifest.version}: bucket at byte {bucket.offset}, expected {end}; "
                "ask the learner for the manifest again"
            )
        end += bucket.num_bytes
    for entry in manifest.tensors:
        need = math.prod(entry.shape) * torch_dtype(entry.dtype).itemsize
        if entry.num_bytes != need or entry.offset % ALIGNMENT or entry.offset + need > end:
            raise WeightChannelError(
                f"version {manifest.version}: tensor {entry.name!r} of shape {entry.shape} {entry.dtype} "
                f"takes {need} bytes, manifest says {entry.num_bytes} at {entry.offset} of {end}"
            )


def staged_tensors(manifest: Manifest, memory: Tensor) -> dict[str, Tensor]:
    """Every name of the manifest as a view over ``memory``; aliases give the same tensor."""
    tensors = {}
    for entry in manifest.tensors:
        view = view_entry(entry, memory)
        for name in (entry.name, *entry.aliases):
            tensors[name] = view
    return tensors


def take_part(tensors: Mapping[str, Tensor]) -> None:
    """Fetch lazy weights as a reader does and drop them: what the other ranks do while one of them reads."""
    for name, *_ in _tied(tensors):
        tensors[name]


def whole_tensors(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Every weight at once: as they are, or fetched as a reader does, onto the CPU."""
    if not isinstance(tensors, LazyWeights):
        return tensors
    found = {}
    for names in _tied(tensors):
        tensor = tensors[names[0]]
        found.update(dict.fromkeys(names, tensor if tensor.is_meta else tensor.cpu()))
    return found


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """xxh3-128 of the master weights: name, dtype, shape and bytes in order of names, tied tensors once.

    Equal digests mean equal weights bit for bit, on any machine and in any channel.

    Example:
        >>> weights_digest({"a": torch.zeros(2)}) == weights_digest({"a": torch.zeros(1, 2)})
        False
    """
    digest = xxhash.xxh3_128()
    for name, *_ in _tied(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        del tensor  # before the next one is gathered
    return digest.hexdigest()

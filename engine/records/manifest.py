"""What one version of the weights is made of, so that a receiver can refuse anything else."""

from __future__ import annotations

from dataclasses import dataclass

from engine.records.version import PolicyVersion


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor inside the run of bytes; tied weights stand once, aliases name the other names."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As numpy or torch name it without prefix: float32, bfloat16."""
    offset: int
    """First byte within the whole run of bytes."""
    num_bytes: int
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bucket:
    """A run of bytes sent and verified at once."""

    offset: int
    num_bytes: int
    digest: str
    """xxh3-64 of the bytes, or their word digest where they lie on a GPU; hexadecimal."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Names, shapes, dtypes, offsets and digests of one version."""

    version: PolicyVersion
    tensors: tuple[TensorEntry, ...]
    buckets: tuple[Bucket, ...]
    location: str
    """Where the bytes lie, in the words of the channel that wrote them."""
    channel: str
    digest: str
    """xxh3-128 over the bucket digests in order: what a generator acknowledges."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all buckets."""
        return sum(bucket.num_bytes for bucket in self.buckets)


@dataclass(frozen=True, slots=True)
class Kept:
    """A version that lies in a file instead of in a channel."""

    version: PolicyVersion
    path: str

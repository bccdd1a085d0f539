"""The digest of bytes where they lie: one sum over 64-bit words, the same on every device.

xxh3 reads on a processor; bytes on a GPU would have to travel there and, on the receiver's side, once more. The
word digest of words w_0 .. w_{n-1} is, modulo 2^64,

    sum_i (x_i xor (x_i >> 32)) f_{i+1},  x_i = w_i f_i,

where f_i is the i-th output of splitmix64 with its last bit set. Every step can be undone, so no change within one
word goes unnoticed. Errors in several words go unnoticed where their sum is 0; the difference that a word makes has
its lowest bit among the lower 32 before it meets its second factor, so this happens to one in 2^33 of them at most.
Integer sums have no order, so the digest is deterministic.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from engine.errors import WeightChannelError
from engine.records.manifest import Manifest

WORD_BYTES = 8
_GOLDEN, _FIRST, _SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shifted(value: Tensor, bits: int) -> Tensor:
    """A shift that brings in zeros; torch's own repeats the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


@lru_cache(maxsize=4)
def _factors(count: int, device: torch.device) -> Tensor:
    """[count] int64, odd."""
    mixed = (torch.arange(count, dtype=torch.int64, device=device) + 1) * _GOLDEN
    mixed = (mixed ^ _shifted(mixed, 30)) * _FIRST
    mixed = (mixed ^ _shifted(mixed, 27)) * _SECOND
    return (mixed ^ _shifted(mixed, 31)) | 1


def word_digest(memory: Tensor, most: int) -> Tensor:
    """The digest as an int64 scalar on the memory's device; does not wait for the device.

    Args:
        memory: [bytes] uint8, a multiple of 8 bytes.
        most: bytes of the largest memory in use, for which factors are made once.
    """
    words = memory.view(torch.int64)
    factors = _factors(most // WORD_BYTES + 1, memory.device)
    mixed = words * factors[: len(words)]
    mixed ^= _shifted(mixed, 32)
    mixed *= factors[1 : len(words) + 1]
    return mixed.sum()


def hexadecimal(digests: list[Tensor]) -> list[str]:
    """Word digests as a manifest names them; waits for the device once."""
    return [f"{value & (2**64 - 1):016x}" for value in torch.stack(digests).tolist()]


def verify_words(manifest: Manifest, memory: Tensor) -> None:
    """Compare the buckets of ``memory``, [bytes] uint8 on any device, with what a manifest promises.

    Raises:
        WeightChannelError: one of them has other bytes.
    """
    most = max(bucket.num_bytes for bucket in manifest.buckets)
    parts = [memory[bucket.offset : bucket.offset + bucket.num_bytes] for bucket in manifest.buckets]
    found = hexadecimal([word_digest(part, most) for part in parts])
    for index, (bucket, digest) in enumerate(zip(manifest.buckets, found, strict=True)):
        if digest != bucket.digest:
            raise WeightChannelError(
                f"version {manifest.version}, bucket {index} of {len(found)}: digest {digest}, expected "
                f"{bucket.digest}; the bytes are refused, publish the version again"
            )

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.errors import WeightChannelError
from engine.records.manifest import Bucket, Manifest
from engine.records.version import PolicyVersion
from engine.weights.layout import version_digest
from engine.weights.word_digest import hexadecimal, verify_words, word_digest


def digest(data, most=None):
    return hexadecimal([word_digest(data, most or len(data))])[0]


def splitmix64(count):
    """The published generator, word by word."""
    state, found = 0, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        mixed = state
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        found.append(mixed ^ (mixed >> 31))
    return found


def some_bytes(size=4096, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, size, np.uint8))


def test_it_is_the_sum_it_says():
    data = some_bytes(256)
    words, factors = data.numpy().view(np.uint64).tolist(), [factor | 1 for factor in splitmix64(33)]
    expected = 0
    for index, word in enumerate(words):
        mixed = word * factors[index] % 2**64
        expected += (mixed ^ (mixed >> 32)) * factors[index + 1]
    assert digest(data) == f"{expected % 2**64:016x}"


def test_a_flip_of_any_bit_changes_it():
    data = some_bytes(128)
    whole, seen = digest(data), set()
    for byte in range(len(data)):
        for bit in range(8):
            data[byte] ^= 1 << bit
            seen.add(digest(data))
            data[byte] ^= 1 << bit
    assert whole not in seen
    assert len(seen) == 8 * len(data)


def test_signs_that_flip_in_two_words_change_it():
    data = some_bytes(256)
    seen = {digest(data)}
    for left in range(7, 256, 8):
        for right in range(left + 8, 256, 8):
            flipped = data.clone()
            flipped[[left, right]] ^= 128
            seen.add(digest(flipped))
    assert len(seen) == 1 + 32 * 31 // 2


def test_words_that_change_places_change_it():
    data = some_bytes()
    swapped = data.clone()
    swapped[:8], swapped[8:16] = data[8:16], data[:8]
    assert digest(swapped) != digest(data)


def test_a_shorter_bucket_has_the_digest_it_has_alone():
    data = some_bytes(1024)
    assert digest(data[:512], most=1024) == digest(data[:512].clone())


def test_a_bucket_with_other_bytes_is_named():
    data = some_bytes(192)
    buckets = tuple(Bucket(at, 64, digest(data[at : at + 64])) for at in (0, 64, 128))
    manifest = Manifest(PolicyVersion(0, 3), (), buckets, "", "", version_digest(buckets))
    verify_words(manifest, data)
    data[70] ^= 1
    with pytest.raises(WeightChannelError, match=r"version 0\.3, bucket 1 of 3"):
        verify_words(manifest, data)
    verify_words(replace(manifest, buckets=(buckets[0], buckets[2])), data)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_finds_the_same():
    data = some_bytes(2**20)
    assert digest(data.cuda()) == digest(data)

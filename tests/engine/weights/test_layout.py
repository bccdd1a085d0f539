import weakref
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from engine.errors import WeightChannelError
from engine.records.manifest import Manifest
from engine.records.version import PolicyVersion
from engine.weights.layout import (
    ALIGNMENT,
    check_manifest,
    plan_entries,
    staged_tensors,
    total_bytes,
    version_digest,
    weights_digest,
    write_buckets,
)


def manifest_of(tensors, dtype=None, bucket_mib=1):
    entries = plan_entries(tensors, dtype)
    memory = torch.full((total_bytes(entries),), 255, dtype=torch.uint8)
    buckets = write_buckets(entries, tensors, memory, bucket_mib)
    digest = version_digest(buckets)
    return Manifest(PolicyVersion(0, 1), entries, buckets, "memory", "test", digest), memory


class Gathered(Mapping):
    """Weights that are made anew when they are asked for, at most one of which may be alive."""

    def __init__(self, tensors):
        self._tensors = tensors
        self.fetched = []
        self._last = lambda: None

    def described(self):
        facts = {}
        for name, tensor in self._tensors.items():
            same = (other for other, seen in self._tensors.items() if seen is tensor and other in facts)
            owner = next(same, None)
            facts[name] = facts[owner] if owner else torch.empty_like(tensor, device="meta")
        return facts

    def __getitem__(self, name):
        assert self._last() is None, f"{self.fetched[-1]} is still held while {name} is fetched"
        self.fetched.append(name)
        tensor = self._tensors[name].clone()
        self._last = weakref.ref(tensor.untyped_storage())
        return tensor

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self):
        return len(self._tensors)


def test_entries_are_sorted_aligned_and_disjoint():
    tensors = {"b": torch.ones(3), "a": torch.ones(5, dtype=torch.int64), "c": torch.tensor(2.0)}
    entries = plan_entries(tensors, None)
    assert [entry.name for entry in entries] == ["a", "b", "c"]
    assert all(entry.offset % ALIGNMENT == 0 for entry in entries)
    ends = [entry.offset + entry.num_bytes for entry in entries]
    assert all(end <= entry.offset for end, entry in zip(ends, entries[1:], strict=False))
    assert total_bytes(entries) >= ends[-1]


def test_tied_tensors_stand_once_and_equal_values_do_not_tie():
    shared = torch.randn(4, 4)
    entries = plan_entries({"head": shared, "embed": shared.view(4, 4), "twin": shared.clone()}, None)
    assert [(entry.name, entry.aliases) for entry in entries] == [("embed", ("head",)), ("twin", ())]


@pytest.mark.parametrize("threads", [1, 2])
def test_tensors_that_cross_pieces_and_buckets_arrive_whole_with_zeros_between(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    sizes = {"a": 3, "b": 700_001, "c": 0, "d": 262_144, "e": 1, "f": 900_000}
    tensors = {name: torch.randn(size).bfloat16() for name, size in sizes.items()}
    manifest, memory = manifest_of(tensors)
    torch.set_num_threads(before)
    staged = staged_tensors(manifest, memory)
    assert all(torch.equal(staged[name], tensor) for name, tensor in tensors.items())
    assert len(manifest.buckets) == 4
    ends = [(entry.offset + entry.num_bytes, -entry.num_bytes % ALIGNMENT) for entry in manifest.tensors]
    assert sum(gap for _, gap in ends) > 0
    assert all(not memory[end : end + gap].any() for end, gap in ends)
    assert manifest_of(tensors)[0].digest == manifest.digest


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_lazy_weights_are_fetched_once_in_order_one_at_a_time(threads, dtype):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    sizes = {"f": 600_000, "d": 262_144, "b": 700_001, "c": 0, "a": 3, "e": 1}
    tensors = {name: torch.randn(size) for name, size in sizes.items()}
    tensors["z"] = tensors["b"]
    lazy = Gathered(tensors)
    manifest, memory = manifest_of(lazy, dtype)
    torch.set_num_threads(before)
    assert lazy.fetched == sorted(sizes)
    plain, expected = manifest_of(tensors, dtype)
    assert manifest == plain
    assert torch.equal(memory, expected)
    lazy = Gathered(tensors)
    assert weights_digest(lazy) == weights_digest(tensors)
    assert lazy.fetched == sorted(sizes)


def test_a_transposed_view_is_not_tied():
    shared = torch.randn(4, 4)
    manifest, memory = manifest_of({"plain": shared, "turned": shared.T})
    staged = staged_tensors(manifest, memory)
    assert torch.equal(staged["turned"], shared.T)


def test_only_floating_tensors_are_cast():
    tensors = {"weight": torch.randn(7), "count": torch.arange(3)}
    manifest, memory = manifest_of(tensors, torch.bfloat16)
    staged = staged_tensors(manifest, memory)
    assert torch.equal(staged["weight"], tensors["weight"].to(torch.bfloat16))
    assert torch.equal(staged["count"], tensors["count"])


def test_empty_and_scalar_tensors_keep_their_shape():
    tensors = {"none": torch.zeros(0, 3), "other": torch.zeros(0, 3), "scalar": torch.tensor(1.5)}
    manifest, memory = manifest_of(tensors)
    staged = staged_tensors(manifest, memory)
    assert staged["none"].shape == (0, 3)
    assert staged["scalar"].shape == ()
    assert staged["scalar"] == 1.5


def test_buckets_cover_every_byte():
    manifest, memory = manifest_of({"a": torch.zeros(2**18 + 5)})
    assert [bucket.offset for bucket in manifest.buckets] == [0, 2**20]
    assert manifest.num_bytes == memory.numel()


def test_nothing_to_publish_is_refused():
    with pytest.raises(WeightChannelError, match="no tensors"):
        plan_entries({}, None)


def test_a_manifest_that_contradicts_itself_is_refused():
    manifest, _ = manifest_of({"a": torch.zeros(2**18 + 5)})
    check_manifest(manifest)
    entry = manifest.tensors[0]
    broken = {
        "manifest digest": replace(manifest, digest="0"),
        "bucket at byte": replace(
            manifest, buckets=manifest.buckets[::-1], digest=version_digest(manifest.buckets[::-1])
        ),
        "takes": replace(manifest, tensors=(replace(entry, shape=(7,)),)),
        "float17": replace(manifest, tensors=(replace(entry, dtype="float17"),)),
    }
    for words, bad in broken.items():
        with pytest.raises(WeightChannelError, match=words):
            check_manifest(bad)
    outside = replace(entry, offset=manifest.num_bytes)
    with pytest.raises(WeightChannelError, match="'a'"):
        check_manifest(replace(manifest, tensors=(outside,)))


def test_weights_digest_sees_names_shapes_bits_and_nothing_else():
    weights = {"a": torch.randn(2, 3), "b": torch.randn(4)}
    digest = weights_digest(weights)
    assert digest == weights_digest({"b": weights["b"].clone(), "a": weights["a"].clone()})
    flipped = {"a": weights["a"].clone(), "b": weights["b"]}
    flipped["a"].view(torch.int32)[0, 0] ^= 1
    changed = [
        flipped,
        {"a": weights["a"].view(3, 2), "b": weights["b"]},
        {"c": weights["a"], "b": weights["b"]},
        {"a": weights["a"]},
    ]
    assert digest not in [weights_digest(other) for other in changed]


def test_weights_digest_reads_values_not_memory_order_and_ties_once():
    weight = torch.randn(3, 5)
    assert weights_digest({"a": weight.T}) == weights_digest({"a": weight.T.contiguous()})
    assert weights_digest({"a": weight, "b": weight}) == weights_digest({"a": weight})
    assert weights_digest({"a": torch.nn.Parameter(weight)}) == weights_digest({"a": weight})

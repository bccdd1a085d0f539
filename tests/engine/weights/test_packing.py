import pytest
import torch

from engine.weights.layout import plan_entries, total_bytes, write_buckets
from engine.weights.packing import Packer, bucket_ranges


def run_of(tensors, dtype=None, step=64):
    entries = plan_entries(tensors, dtype)
    memory = torch.full((total_bytes(entries),), 255, dtype=torch.uint8)
    packer = Packer(entries, tensors)
    for first in range(0, len(memory), step):
        packer.fill(memory[first : first + step])
    return entries, memory


@pytest.mark.parametrize("step", [64, 192, 4096, 2**20])
def test_it_writes_the_bytes_of_the_layout_whatever_the_bucket(step):
    tensors = {"a": torch.randn(3), "b": torch.randn(701, 3).bfloat16(), "c": torch.zeros(0, 4),
               "d": torch.tensor(True), "e": torch.arange(40), "f": torch.randn(8, 4).T, "g": torch.zeros(0)}
    entries, memory = run_of(tensors, step=step)
    expected = torch.full_like(memory, 255)
    write_buckets(entries, tensors, expected, 1)
    assert torch.equal(memory, expected)


def test_it_casts_on_the_way():
    tensors = {"a": torch.randn(100), "b": torch.arange(3)}
    entries = plan_entries(tensors, torch.bfloat16)
    memory = torch.empty(total_bytes(entries), dtype=torch.uint8)
    Packer(entries, tensors).fill(memory)
    assert torch.equal(memory[:200].view(torch.bfloat16), tensors["a"].bfloat16())


def test_each_tensor_is_fetched_when_its_turn_comes_and_once():
    fetched = []

    class Lazy(dict):
        def __getitem__(self, name):
            fetched.append(name)
            return super().__getitem__(name)

    tensors = Lazy({name: torch.randn(64) for name in "cab"})
    entries = plan_entries(dict(tensors), None)
    packer = Packer(entries, tensors)
    assert fetched == ["a"]
    memory = torch.empty(total_bytes(entries), dtype=torch.uint8)
    packer.fill(memory[:128])
    assert fetched == ["a"]
    packer.fill(memory[128:])
    assert fetched == ["a", "b", "c"]


def test_buckets_cover_the_run():
    assert bucket_ranges(64, 1) == [(0, 64)]
    assert bucket_ranges(2**21, 1) == [(0, 2**20), (2**20, 2**20)]

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.ops import version_mask as module
from engine.ops.version_mask import version_mask

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def offsets(lengths: list[int], device: str = "cpu") -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)


@pytest.fixture
def serve(cpu_implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The readable reference, then the kernels of each level."""
    if cpu_implementation == "reference":
        monkeypatch.setattr(module, "_op", module.version_mask_reference)


@pytest.mark.usefixtures("serve")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lengths", [[3, 0, 600, 1], [0], [], [5]])
@pytest.mark.parametrize("max_staleness", [0, 2, 100])
def test_tokens_within_the_bound(lengths: list[int], max_staleness: int, device: str, poisoned: None) -> None:
    tokens = sum(lengths)
    versions, carries = torch.randint(3, 8, (tokens,)), torch.rand(tokens) < 0.7
    where = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    mask, counts = version_mask(
        versions.to(device), carries.to(device), 7, max_staleness, cu_seqlens=offsets(lengths, device)
    )
    expected = [c and 7 - v <= max_staleness for v, c in zip(versions.tolist(), carries.tolist(), strict=True)]
    assert mask.tolist() == expected
    assert counts.tolist() == [sum(m for m, s in zip(expected, where.tolist(), strict=True) if s == segment)
                               for segment in range(len(lengths))]
    by_index = version_mask(
        versions.to(device), carries.to(device), 7, max_staleness, where.to(device), len(lengths)
    )
    assert torch.equal(by_index[0], mask)
    assert torch.equal(by_index[1], counts)


def test_threads_and_strides_change_nothing(cpu_level: str, two_threads: None) -> None:
    tokens = 700_000
    versions, carries = torch.randint(0, 8, (tokens, 2))[:, 1], torch.rand(tokens, 2)[:, 0] < 0.5
    cu_seqlens = offsets([1, 400_000, 0, 299_999])
    mask, counts = version_mask(versions, carries, 7, 3, cu_seqlens=cu_seqlens)
    assert torch.equal(mask, carries & (versions >= 4))
    assert counts.sum() == mask.sum()
    torch.set_num_threads(1)
    assert torch.equal(version_mask(versions, carries, 7, 3, cu_seqlens=cu_seqlens)[1], counts)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    versions, carries = torch.tensor([1, 2, 3], device=device), torch.ones(3, dtype=torch.bool, device=device)
    torch.library.opcheck(
        torch.ops.perilune.version_mask.default, (versions, carries, offsets([1, 2], device), 3, 1)
    )


VERSIONS, CARRIES, ALL = torch.tensor([1, 2, 9]), torch.ones(3, dtype=torch.bool), offsets([3])
BAD = [
    (lambda: version_mask(VERSIONS, CARRIES, 7, 1, cu_seqlens=ALL),
     "versions: expected none above 7, the version being trained, got 9"),
    (lambda: version_mask(VERSIONS.int(), CARRIES, 9, 1, cu_seqlens=ALL), r"versions: expected \[T\] int64, got \[3\]"),
    (lambda: version_mask(VERSIONS, CARRIES.int(), 9, 1, cu_seqlens=ALL), r"carries: expected \[3\] bool, got \[3\] i"),
    (lambda: version_mask(VERSIONS, CARRIES[:2], 9, 1, cu_seqlens=ALL), r"carries: expected \[3\] bool, got \[2\] b"),
    (lambda: version_mask(VERSIONS, CARRIES, 9, -1, cu_seqlens=ALL), "max_staleness: expected at least 0, got -1"),
    (lambda: version_mask(VERSIONS, CARRIES, 9, 1, cu_seqlens=offsets([2])), "cu_seqlens: expected values from 0 to 3"),
]


@pytest.mark.usefixtures("serve")
@pytest.mark.parametrize(("call", "said"), BAD)
def test_bad_input_is_named(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_version_from_the_future_is_counted_as_minus_one_on_a_gpu() -> None:
    _, counts = version_mask(VERSIONS.cuda(), CARRIES.cuda(), 7, 9, cu_seqlens=offsets([2, 1], "cuda"))
    assert counts.tolist() == [2, -1]

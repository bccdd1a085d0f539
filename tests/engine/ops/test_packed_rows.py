from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.ops import extension, packed_rows
from engine.ops.packed_rows import pad, row_layout, unpad

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
LENGTHS = [[3, 0, 5, 1], [0, 0], [], [7], [1, 64, 0, 129, 2]]
SHAPES: list[tuple[int, ...]] = [(), (5,), (16,), (3, 7)]


def offsets(lengths: list[int], device: str = "cpu") -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)


def rows(lengths: list[int], shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    return torch.randint(-50, 50, (sum(lengths), *shape)).to(dtype).to(device)


def padded_by_hand(packed: Tensor, lengths: list[int], length: int, fill: float) -> Tensor:
    out = torch.full((len(lengths), length, *packed.shape[1:]), fill).to(packed.dtype).to(packed.device)
    for row, part in zip(out, packed.split(lengths) if lengths else (), strict=True):
        row[: len(part)] = part
    return out


@pytest.fixture(params=["compiled", "reference"])
def serve(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of the device, then the readable references."""
    if request.param == "reference":
        monkeypatch.setattr(packed_rows, "_layout_op", packed_rows.row_layout_reference)
        monkeypatch.setattr(packed_rows, "_pad_op", packed_rows.pad_reference)
        monkeypatch.setattr(packed_rows, "_unpad_op", packed_rows.unpad_reference)


@pytest.mark.usefixtures("serve")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_layout(lengths: list[int], device: str) -> None:
    positions, segment = row_layout(offsets(lengths, device), sum(lengths))
    assert positions.tolist() == [i for n in lengths for i in range(n)]
    assert segment.tolist() == [s for s, n in enumerate(lengths) for _ in range(n)]
    assert positions.dtype == segment.dtype == torch.int64


@pytest.mark.usefixtures("serve")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float32, torch.int64, torch.int8, torch.bool])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_pad_and_back(lengths: list[int], shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    packed, cu_seqlens = rows(lengths, shape, dtype, device), offsets(lengths, device)
    for length in (max(lengths, default=0), max(lengths, default=0) + 3):
        padded = pad(packed, cu_seqlens, length, -7.0)
        assert torch.equal(padded, padded_by_hand(packed, lengths, length, -7.0))
        assert torch.equal(unpad(padded, cu_seqlens, len(packed)), packed)


@pytest.mark.parametrize("device", DEVICES)
def test_fill_is_of_the_dtype(device: str) -> None:
    cu_seqlens = offsets([1, 0], device)
    for dtype, fill in ((torch.bfloat16, float("-inf")), (torch.float64, 0.1), (torch.int64, 2.0**40)):
        found = pad(torch.zeros(1, dtype=dtype, device=device), cu_seqlens, 2, fill)
        assert torch.equal(found.flatten()[1:], torch.tensor([fill] * 3, dtype=torch.float64).to(dtype).to(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(33,), (32,)])
def test_every_byte_is_written_whatever_was_there(
    shape: tuple[int, ...], device: str, poisoned: None, two_threads: None
) -> None:
    """Longer than what one thread keeps to itself."""
    lengths = [4001, 0, 12_000, 1, 9_990]
    packed, cu_seqlens = rows(lengths, shape, torch.float32, device), offsets(lengths, device)
    padded = pad(packed, cu_seqlens, 12_001)
    assert torch.equal(padded, padded_by_hand(packed, lengths, 12_001, 0.0))
    assert torch.equal(unpad(padded, cu_seqlens, len(packed)), packed)
    positions, segment = row_layout(offsets([300_000, 0, 400_000], device), 700_000)
    assert torch.equal(positions.cpu(), torch.cat([torch.arange(300_000), torch.arange(400_000)]))
    assert torch.equal(segment.cpu(), torch.tensor([0, 2]).repeat_interleave(torch.tensor([300_000, 400_000])))


@pytest.mark.parametrize("device", DEVICES)
def test_strided_input(device: str) -> None:
    packed = rows([3, 2], (4, 6), torch.float32, device)
    cu_seqlens = torch.stack([offsets([3, 2], device)] * 2, 1)[:, 0]
    strided = packed.transpose(1, 2).contiguous().transpose(1, 2)
    padded = pad(strided, cu_seqlens, 4)
    assert torch.equal(padded, padded_by_hand(packed, [3, 2], 4, 0.0))
    apart = torch.stack([padded] * 2, -1)[..., 1]
    assert torch.equal(unpad(apart, cu_seqlens, 5), packed)
    # An address that no wide word fits.
    shifted = torch.zeros(packed.numel() + 1, device=device)[1:].view_as(packed).copy_(packed)
    assert torch.equal(pad(shifted, cu_seqlens, 4), padded)


@pytest.mark.parametrize("device", DEVICES)
def test_each_is_the_backward_of_the_other(device: str) -> None:
    cu_seqlens = offsets([2, 0, 3], device)
    packed = torch.randn(5, 2, dtype=torch.float64, device=device, requires_grad=True)
    padded = torch.randn(3, 4, 2, dtype=torch.float64, device=device, requires_grad=True)
    for operation, leaf in (
        (lambda x: pad(x, cu_seqlens, 4, 1.5), packed),
        (lambda x: unpad(x, cu_seqlens, 5), padded),
    ):
        assert torch.autograd.gradcheck(operation, (leaf,))
        assert torch.autograd.gradgradcheck(operation, (leaf,))
    upstream = torch.randn(3, 4, 2, dtype=torch.float64, device=device)
    (gradient,) = torch.autograd.grad(pad(packed, cu_seqlens, 4), packed, upstream)
    assert torch.equal(gradient, unpad(upstream, cu_seqlens, 5))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    cu_seqlens = offsets([2, 0, 3], device)
    packed = torch.randn(5, 2, device=device, requires_grad=True)
    padded = torch.randn(3, 4, 2, device=device, requires_grad=True)
    ops = torch.ops.perilune
    torch.library.opcheck(ops.row_layout.default, (cu_seqlens, 5))
    torch.library.opcheck(ops.pad.default, (packed, cu_seqlens, 4, 0.5))
    torch.library.opcheck(ops.unpad.default, (padded, cu_seqlens, 5))


SCHEMAS = """
import torch
from engine.ops import packed_rows, policy_gradient, segments, version_mask
for module in (packed_rows, segments, version_mask, policy_gradient):
    for name in sorted(vars(module)):
        if name.endswith("_op"):
            print(getattr(module, name)._schema)
"""


def test_schemas_are_the_same_with_and_without_the_extension() -> None:
    forced, compiled = (
        subprocess.run([sys.executable, "-c", SCHEMAS], env=os.environ | {"PERILUNE_OPS": choice}, text=True,
                       capture_output=True, timeout=120, check=True).stdout
        for choice in ("reference", "auto")
    )
    assert forced == compiled
    assert len(set(forced.splitlines())) == 10
    for name in ("pad", "segment_sum", "version_mask", "policy_gradient"):
        found = torch._C._dispatch_has_kernel_for_dispatch_key(f"perilune::{name}", "CPU")
        assert found == extension.available()


def test_compiles_without_a_break() -> None:
    cu_seqlens = offsets([2, 0, 3])

    def work(packed: Tensor) -> Tensor:
        return unpad(pad(packed, cu_seqlens, 4).square(), cu_seqlens, 5)

    compiled: Callable[[Tensor], Tensor] = torch.compile(work, backend="aot_eager", fullgraph=True)
    packed = torch.randn(5, 2, requires_grad=True)
    compiled(packed).sum().backward()
    assert packed.grad is not None
    torch.testing.assert_close(packed.grad, 2 * packed.detach())


BAD = [
    (lambda: row_layout(offsets([2, 3]).long(), 5), r"cu_seqlens: expected \[S \+ 1\] int32, got \[3\] int64"),
    (lambda: row_layout(torch.zeros(0, dtype=torch.int32), 0), r"cu_seqlens: expected \[S \+ 1\] int32, got \[0\]"),
    (lambda: row_layout(offsets([2, 3]), 6), "cu_seqlens: expected values from 0 to 6, got 0 to 5"),
    (lambda: row_layout(offsets([2, 3]), -1), "total: expected at least 0, got -1"),
    (lambda: row_layout(torch.tensor([1, 5], dtype=torch.int32), 5), "cu_seqlens: expected values from 0 to 5, got 1"),
    (lambda: row_layout(offsets([5, -3, 3]), 5), "cu_seqlens: expected values that never fall, got "),
    (lambda: pad(torch.zeros(()), offsets([2]), 2), r"packed: expected \[T, \.\.\.\], got \[\] float32"),
    (lambda: pad(torch.zeros(5), offsets([2, 2]), 2), "cu_seqlens: expected values from 0 to 5, got 0 to 4"),
    (lambda: pad(torch.zeros(5), offsets([2, 3]), 2), "length: expected at least 3, the longest segment, got 2"),
    (lambda: pad(torch.zeros(5), offsets([2, 3]), -1), "length: expected at least 0, got -1"),
    (lambda: pad(torch.zeros(5).long(), offsets([2, 3]), 3, 0.5), "fill: expected a whole number .*int64, got 0.5"),
    (lambda: pad(torch.zeros(5).char(), offsets([2, 3]), 3, 300), "fill: expected a whole number .*int8.* got 300"),
    (lambda: pad(torch.zeros(5).long(), offsets([2, 3]), 3, 2**63), "fill: expected a whole number .*int64, got 9223"),
    (lambda: pad(torch.zeros(5).half(), offsets([2, 3]), 3, 1e5), "fill: expected a number .*float16, got 1000"),
    (lambda: pad(torch.zeros(5, dtype=torch.complex128), offsets([2, 3]), 3), "packed: expected elements of at most 8"),
    (lambda: pad(torch.zeros(5, device="meta"), offsets([5]), 5), "cu_seqlens: expected a tensor on meta, got cpu"),
    (lambda: unpad(torch.zeros(5), offsets([5]), 5), r"padded: expected \[S, L, \.\.\.\], got \[5\] float32"),
    (lambda: unpad(torch.zeros(2, 3), offsets([2]), 2), r"cu_seqlens: expected \[3\] int32, got \[2\] int32"),
    (lambda: unpad(torch.zeros(2, 3), offsets([2, 4]), 6), "cu_seqlens: expected segments of at most 3 tokens, got 4"),
]


@pytest.mark.usefixtures("serve")
@pytest.mark.parametrize(("call", "said"), BAD)
def test_bad_input_is_named(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_what_does_not_fit_is_nan_on_a_gpu() -> None:
    short = offsets([2, 3], "cuda")
    assert pad(torch.ones(5, device="cuda"), short, 2).isnan().tolist() == [[False] * 2, [True] * 2]
    assert unpad(torch.ones(2, 2, device="cuda"), short, 5).isnan().tolist() == [False] * 4 + [True]
    falls = torch.tensor([0, 4, 2, 5], dtype=torch.int32, device="cuda")
    for found in row_layout(falls, 5):
        assert found.tolist() == [-1] * 5
    assert pad(torch.ones(5, device="cuda"), falls, 5).isnan().all()
    assert unpad(torch.ones(3, 5, device="cuda"), falls, 5).isnan().all()

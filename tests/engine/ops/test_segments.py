from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.ops import segments
from engine.ops.segments import segment_broadcast, segment_max, segment_mean, segment_sum

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
LENGTHS = [[2, 3, 1], [7], [1, 8, 9, 64, 129, 1000, 5]]
WITH_EMPTY = [[0, 3, 0, 0, 17, 0], [0, 0], [], [0]]
DTYPES = [torch.float32, torch.float64]
NAN = float("nan")


def offsets(lengths: list[int], device: str = "cpu") -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)


def index(lengths: list[int], device: str = "cpu") -> Tensor:
    return torch.tensor([s for s, n in enumerate(lengths) for _ in range(n)], dtype=torch.int64).to(device)


def values_of(lengths: list[int], dtype: torch.dtype, device: str) -> Tensor:
    return (torch.randn(sum(lengths)) * torch.logspace(-3, 3, sum(lengths))).to(dtype).to(device)


def parts(values: Tensor, lengths: list[int]) -> list[Tensor]:
    return [values[sum(lengths[:s]) : sum(lengths[: s + 1])] for s in range(len(lengths))]


@pytest.fixture
def serve(cpu_implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The readable references, then the kernels of each level."""
    if cpu_implementation == "reference":
        for name in ("offsets", "sum", "max", "broadcast"):
            monkeypatch.setattr(segments, f"_{name}_op", getattr(segments, f"segment_{name}_reference"))


@pytest.mark.usefixtures("serve")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LENGTHS + WITH_EMPTY)
def test_sum(lengths: list[int], dtype: torch.dtype, device: str) -> None:
    values = values_of(lengths, dtype, device)
    sums = segment_sum(values, index(lengths, device), len(lengths))
    assert sums.dtype == dtype
    for found, part in zip(sums.tolist(), parts(values.double(), lengths), strict=True):
        assert abs(found - float(part.sum())) <= float(part.abs().sum()) * torch.finfo(dtype).eps
    assert torch.equal(segment_sum(values, cu_seqlens=offsets(lengths, device)), sums)


@pytest.mark.usefixtures("serve")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_mean_and_max(lengths: list[int], dtype: torch.dtype, device: str) -> None:
    values = values_of(lengths, dtype, device)
    where = {"segment": index(lengths, device), "num_segments": len(lengths)}
    exact = torch.stack([part.double().mean() for part in parts(values, lengths)])
    torch.testing.assert_close(segment_mean(values, **where).double(), exact, rtol=1e-5, atol=1e-5)
    most, place = segment_max(values, **where)
    assert torch.equal(most, torch.stack([part.max() for part in parts(values, lengths)]))
    assert torch.equal(values[place], most)
    for found, by_offsets in zip(
        (segment_mean(values, **where), most, place),
        (segment_mean(values, cu_seqlens=offsets(lengths, device)),
         *segment_max(values, cu_seqlens=offsets(lengths, device))), strict=True,
    ):
        assert torch.equal(found, by_offsets)


@pytest.mark.usefixtures("serve")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_max_takes_the_first_and_shows_nan(dtype: torch.dtype, device: str) -> None:
    lengths = [3, 20, 20, 2, 1]
    values = torch.zeros(46, dtype=dtype, device=device)
    values[[7, 9]] = 2.0
    values[[24, 41]] = NAN
    values[43:45] = float("-inf")
    most, place = segment_max(values, cu_seqlens=offsets(lengths, device))
    assert place.tolist() == [0, 7, 24, 43, 45]
    assert str(most.tolist()) == "[0.0, 2.0, nan, -inf, 0.0]"
    assert segment_sum(values, cu_seqlens=offsets(lengths, device)).isnan().tolist() == [False, False, True] + [
        False] * 2


@pytest.mark.usefixtures("serve")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("lengths", LENGTHS + WITH_EMPTY)
def test_broadcast(lengths: list[int], dtype: torch.dtype, device: str) -> None:
    values = torch.randint(-9, 9, (len(lengths),)).to(dtype).to(device)
    where = index(lengths, device)
    spread = segment_broadcast(values, where)
    assert torch.equal(spread, values[where])
    by_offsets = segment_broadcast(values, cu_seqlens=offsets(lengths, device), total=sum(lengths))
    assert torch.equal(by_offsets, spread)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_segment_does_not_know_its_neighbours_place_or_threads(
    cpu_level: str, dtype: torch.dtype, device: str, poisoned: None, two_threads: None
) -> None:
    """Longer than what one thread keeps to itself, and bit for bit the same alone, moved, and again."""
    lengths = [300_000, 0, 77, 250_000, 1, 40_000]
    values, cu_seqlens = values_of(lengths, dtype, device), offsets(lengths, device)
    together = segment_sum(values, cu_seqlens=cu_seqlens)
    assert torch.equal(segment_sum(values, cu_seqlens=cu_seqlens), together)
    assert torch.equal(segment_sum(values, index(lengths, device), len(lengths)), together)
    for s, part in enumerate(parts(values, lengths)):
        assert torch.equal(segment_sum(part.clone(), cu_seqlens=offsets([len(part)], device))[0], together[s])
    spread = segment_broadcast(together, cu_seqlens=cu_seqlens, total=len(values))
    assert torch.equal(spread, together[index(lengths, device)])
    if device == "cpu":
        torch.set_num_threads(1)
        assert torch.equal(segment_sum(values, cu_seqlens=cu_seqlens), together)


@pytest.mark.parametrize("device", DEVICES)
def test_strided_input(cpu_level: str, device: str) -> None:
    lengths = [5, 9, 2]
    pair = torch.randn(16, 2, device=device)
    where = torch.stack([index(lengths, device)] * 2, 1)[:, 1]
    assert torch.equal(segment_sum(pair[:, 1], where, 3), segment_sum(pair[:, 1].contiguous(), where.contiguous(), 3))
    assert torch.equal(segment_max(pair[:, 0], where, 3)[0], segment_max(pair[:, 0].contiguous(), where, 3)[0])
    assert torch.equal(segment_broadcast(pair[:3, 1], where), pair[:3, 1].contiguous()[where])


@pytest.mark.usefixtures("serve")
@pytest.mark.parametrize("device", DEVICES)
def test_gradients(device: str) -> None:
    lengths = [3, 0, 4]
    where, cu_seqlens = index(lengths, device), offsets(lengths, device)
    values = torch.randn(7, dtype=torch.float64, device=device, requires_grad=True)
    few = torch.randn(3, dtype=torch.float64, device=device, requires_grad=True)
    full = offsets([3, 4], device)
    for operation, leaf in (
        (lambda v: segment_sum(v, where, 3), values),
        (lambda v: segment_mean(v, cu_seqlens=full), values),
        (lambda v: segment_max(v, cu_seqlens=full)[0], values),
        (lambda v: segment_broadcast(v, where), few),
        (lambda v: segment_broadcast(v, cu_seqlens=cu_seqlens, total=7), few),
    ):
        assert torch.autograd.gradcheck(operation, (leaf,))
        assert torch.autograd.gradgradcheck(operation, (leaf,))


@pytest.mark.parametrize("device", DEVICES)
def test_gradient_of_the_largest_goes_to_the_first(device: str) -> None:
    values = torch.tensor([1.0, 3.0, 3.0, 2.0], device=device, requires_grad=True)
    most, place = segment_max(values, cu_seqlens=offsets([3, 1], device))
    assert not place.requires_grad
    (gradient,) = torch.autograd.grad(most, values, torch.tensor([0.5, -2.0], device=device))
    assert gradient.tolist() == [0.0, 0.5, 0.0, -2.0]


def test_what_no_token_holds_takes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer of a GPU to a segment without tokens, which a CPU refuses."""
    answer = torch.tensor([3.0, NAN, 2.0, NAN]), torch.tensor([1, -1, 3, -1])
    monkeypatch.setattr(segments, "_max_op", lambda *_: answer)
    values = torch.tensor([1.0, 3.0, 3.0, 2.0], requires_grad=True)
    most, _ = segment_max(values, cu_seqlens=offsets([3, 0, 1, 0]))
    (gradient,) = torch.autograd.grad(most, values, torch.tensor([0.5, 7.0, -2.0, 9.0]))
    assert gradient.tolist() == [0.0, 0.5, 0.0, -2.0]


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    cu_seqlens, values = offsets([3, 4], device), torch.randn(7, device=device)
    ops = torch.ops.perilune
    torch.library.opcheck(ops.segment_offsets.default, (index([3, 0, 4], device), 3))
    torch.library.opcheck(ops.segment_sum.default, (values, cu_seqlens, False))
    torch.library.opcheck(ops.segment_sum.default, (values, cu_seqlens, True))
    torch.library.opcheck(ops.segment_max.default, (values, cu_seqlens))
    torch.library.opcheck(ops.segment_broadcast.default, (values[:2], cu_seqlens, 7))


def test_compiles_without_a_break() -> None:
    where = index([3, 4])

    def work(values: Tensor) -> Tensor:
        return segment_broadcast(segment_mean(values, where, 2), where) * segment_max(values, where, 2)[0][0]

    compiled: Callable[[Tensor], Tensor] = torch.compile(work, backend="aot_eager", fullgraph=True)
    values = torch.randn(7, requires_grad=True)
    got = torch.autograd.grad(compiled(values).square().sum(), values)[0]
    torch.testing.assert_close(got, torch.autograd.grad(work(values).square().sum(), values)[0])


SIX = index([2, 0, 3, 0, 1])
ZEROS = torch.zeros(6)
BAD = [
    (lambda: segment_sum(ZEROS, SIX, 4), r"segment: expected values in 0\.\.3, got 0\.\.4"),
    (lambda: segment_sum(ZEROS, SIX - 1, 5), r"segment: expected values in 0\.\.4, got -1\.\.3"),
    (lambda: segment_sum(ZEROS, SIX.flip(0), 6), "segment: expected indices that never fall, got 2 after 4"),
    (lambda: segment_sum(ZEROS.bfloat16(), SIX, 6), "values: expected float32 or float64, got .* bfloat16"),
    (lambda: segment_sum(ZEROS.view(2, 3), SIX, 6), r"values: expected \[T\], got \[2, 3\]"),
    (lambda: segment_sum(ZEROS, SIX[:5], 6), r"segment: expected \[6\] int64, got \[5\] int64"),
    (lambda: segment_sum(ZEROS, SIX), "num_segments: expected the number of segments, got None"),
    (lambda: segment_sum(ZEROS), r"segment: expected \[T\] int64, or cu_seqlens in its place, got None"),
    (lambda: segment_sum(ZEROS, SIX, 5, cu_seqlens=offsets([6])), "cu_seqlens: expected None beside segment"),
    (lambda: segment_sum(ZEROS, SIX.to("meta"), 5), "segment: expected a tensor on cpu, got meta"),
    (lambda: segment_sum(ZEROS, cu_seqlens=offsets([5])), "cu_seqlens: expected values from 0 to 6, got 0 to 5"),
    (lambda: segment_sum(ZEROS, cu_seqlens=offsets([7, -1])), "cu_seqlens: expected values that never fall"),
    (lambda: segment_mean(ZEROS, SIX, 5), "a token in every segment, got none in segment 1"),
    (lambda: segment_max(ZEROS, SIX, 5), "a token in every segment, got none in segment 1"),
    (lambda: segment_broadcast(ZEROS, SIX.int()), r"segment: expected \[T\] int64, got \[6\] int32"),
    (lambda: segment_broadcast(ZEROS), r"segment: expected \[T\] int64, or cu_seqlens in its place"),
    (lambda: segment_broadcast(ZEROS[:4], SIX), r"segment: expected values in 0\.\.3, got 0\.\.4"),
    (lambda: segment_broadcast(ZEROS, cu_seqlens=offsets([6])), "total: expected the number of tokens"),
    (lambda: segment_broadcast(ZEROS, SIX, total=6), "total: expected None beside segment, got 6"),
    (lambda: segment_broadcast(ZEROS, cu_seqlens=offsets([6]), total=6), r"cu_seqlens: expected \[7\] int32"),
]


@pytest.mark.usefixtures("serve")
@pytest.mark.parametrize(("call", "said"), BAD)
def test_bad_input_is_named(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_no_fall_hides_behind_a_wrapped_difference(cpu_level: str) -> None:
    least = torch.iinfo(torch.int64).min
    for wrong in ([0, least, 1], [0, 5, least], [-1, least, 0], [0] * 70 + [1, 0] + [1] * 70):
        with pytest.raises(ValueError, match="segment: expected"):
            segment_sum(torch.zeros(len(wrong), device="cpu"), torch.tensor(wrong, device="cpu"), 6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_what_does_not_fit_is_nan_on_a_gpu() -> None:
    ones = torch.ones(6, device="cuda")
    falls = torch.tensor([0, 2, 1, 3, 3, 4], device="cuda")
    beyond = torch.tensor([0, 0, 0, 0, 0, 9], device="cuda")
    for wrong in (falls, beyond, beyond - 1):
        assert segment_sum(ones, wrong, 5).isnan().all()
        assert segment_max(ones, wrong, 5)[1].tolist() == [-1] * 5
        assert segment_broadcast(ones[:5], wrong).isnan().all()
        leaf = ones.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(segment_max(leaf, wrong, 5)[0].sum(), leaf)
        assert gradient.tolist() == [0.0] * 6
    assert segment_mean(ones, cu_seqlens=offsets([0, 6], "cuda")).isnan().tolist() == [True, False]
    most, place = segment_max(leaf, cu_seqlens=offsets([0, 6], "cuda"))
    assert (most.isnan().tolist(), place.tolist()) == ([True, False], [-1, 0])
    assert torch.autograd.grad(most[1], leaf)[0].tolist() == [1.0] + [0.0] * 5

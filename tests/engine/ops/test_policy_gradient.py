from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.ops import policy_gradient as module
from engine.ops import segments
from engine.ops.policy_gradient import policy_gradient

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
LENGTHS = [[3, 0, 5, 1], [0, 0], [], [7], [1, 64, 0, 129, 1000, 15]]
TAU, LENGTH = 0.3, 7.0


def offsets(lengths: list[int], device: str = "cpu") -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)


def index(lengths: list[int], device: str) -> Tensor:
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64)).to(device)


def problem(tokens: int, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    names = ("logprob", "coefficient", "reference", "weight")
    given = {name: torch.randn(tokens, dtype=torch.float64).to(dtype).to(device) for name in names}
    return given | {"logprob": given["logprob"].requires_grad_()}


def by_autograd(given: dict[str, Tensor], where: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The written formula in float64; weighted, it has the gradient of weighted tokens and its own value."""
    logprob, coefficient = given["logprob"].double(), given["coefficient"].double()
    reference, weight = given.get("reference"), given.get("weight")
    anchor = logprob.detach() if reference is None else reference.double()

    def sums(values: Tensor) -> Tensor:
        return torch.zeros(count, dtype=torch.float64, device=where.device).index_add(0, where, values)

    def loss(weighed: Tensor) -> Tensor:
        return -(coefficient * weighed).sum() + TAU / 2 * (sums(weighed - anchor) / LENGTH).square().sum()

    value = loss(logprob)
    if weight is not None:
        scaled = logprob.detach() + weight.double() * (logprob - logprob.detach())
        value = loss(scaled)
    return value, sums(logprob.detach() - anchor)


@pytest.fixture
def serve(cpu_implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The readable references, then the kernels of each level."""
    if cpu_implementation == "reference":
        monkeypatch.setattr(module, "_op", module.policy_gradient_reference)
        monkeypatch.setattr(module, "_backward_op", module.policy_gradient_backward_reference)
        monkeypatch.setattr(segments, "_offsets_op", segments.segment_offsets_reference)


@pytest.mark.usefixtures("serve")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("left_out", [(), ("weight",), ("reference",), ("reference", "weight")])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_values_and_gradients(
    lengths: list[int], left_out: tuple[str, ...], dtype: torch.dtype, device: str, poisoned: None
) -> None:
    given = problem(sum(lengths), dtype, device)
    given = {name: value for name, value in given.items() if name not in left_out}
    where, count = index(lengths, device), len(lengths)
    found = policy_gradient(**given, segment=where, num_segments=count, tau=TAU, length=LENGTH)
    exact = by_autograd(given, where, count)
    bound = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 100 * torch.finfo(dtype).eps}
    for ours, truth in zip(found, exact, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), truth, **bound)
    assert not found.drift.requires_grad
    ours, truth = (
        torch.autograd.grad(loss, given["logprob"], torch.tensor(-1.7, dtype=loss.dtype, device=device))[0]
        for loss in (found.loss, exact[0])
    )
    torch.testing.assert_close(ours, truth, **bound)


@pytest.mark.usefixtures("serve")
@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device: str) -> None:
    given = problem(8, torch.float64, device) | {"weight": None}
    where, leaf = index([3, 0, 5], device), given.pop("logprob")

    def work(logprob: Tensor) -> Any:
        return policy_gradient(logprob, **given, segment=where, num_segments=3, tau=TAU, length=LENGTH).loss

    assert torch.autograd.gradcheck(work, (leaf,))
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(work(leaf), leaf, create_graph=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_a_segment_do_not_depend_on_neighbours_or_threads(
    cpu_level: str, dtype: torch.dtype, device: str, two_threads: None
) -> None:
    """Longer than what one thread keeps to itself, and bit for bit the same alone, and again."""
    lengths = [300_000, 0, 77, 250_000, 1, 40_000]
    given, cu_seqlens = problem(sum(lengths), dtype, device), offsets(lengths, device)

    def results() -> list[Tensor]:
        found = policy_gradient(**given, cu_seqlens=cu_seqlens, tau=TAU, length=LENGTH)
        return [*found, torch.autograd.grad(found.loss, given["logprob"])[0]]

    together = results()
    for first, again in zip(together, results(), strict=True):
        assert torch.equal(first, again)
    if device == "cpu":
        torch.set_num_threads(1)
        for first, again in zip(together, results(), strict=True):
            assert torch.equal(first, again)
    start = 0
    for s, size in enumerate(lengths):
        own = {name: value.detach()[start : start + size].clone() for name, value in given.items()}
        alone = policy_gradient(**own, cu_seqlens=offsets([size], device), tau=TAU, length=LENGTH)
        assert torch.equal(alone.drift[0], together[1][s])
        start += size


@pytest.mark.parametrize("device", DEVICES)
def test_strided_input(cpu_level: str, device: str) -> None:
    wide = torch.randn(12, 4, device=device)
    where = torch.stack([index([5, 7], device)] * 2, 1)[:, 1]
    strided = policy_gradient(*wide.unbind(1)[:2], where, 2, reference=wide[:, 2], tau=TAU)
    rows = wide.T.contiguous()
    for ours, plain in zip(
        strided, policy_gradient(rows[0], rows[1], where, 2, reference=rows[2], tau=TAU), strict=True
    ):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    given, cu_seqlens = problem(8, torch.float32, device), offsets([3, 5], device)
    logprob, coefficient, reference, weight = (value.detach() for value in given.values())
    drift, g_loss = torch.randn(2, device=device), torch.tensor(0.5, device=device)
    ops = torch.ops.perilune
    for anchor in (reference, None):
        torch.library.opcheck(
            ops.policy_gradient.default, (logprob, coefficient, anchor, cu_seqlens, TAU, LENGTH)
        )
    for factor in (weight, None):
        torch.library.opcheck(
            ops.policy_gradient_backward.default,
            (coefficient, factor, drift, cu_seqlens, g_loss, TAU, LENGTH),
        )


@pytest.mark.parametrize("by_index", [True, False])
def test_compiles_without_a_break(by_index: bool) -> None:
    given, where, cu_seqlens = problem(8, torch.float32, "cpu"), index([3, 5], "cpu"), offsets([3, 5])

    def work(logprob: Tensor) -> Tensor:
        rest = {name: given[name] for name in ("coefficient", "reference", "weight")}
        if by_index:
            return policy_gradient(logprob, segment=where, num_segments=2, tau=TAU, **rest).loss
        return policy_gradient(logprob, cu_seqlens=cu_seqlens, tau=TAU, **rest).loss

    compiled: Callable[[Tensor], Tensor] = torch.compile(work, backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(compiled(given["logprob"]), given["logprob"])[0]
    assert torch.equal(got, torch.autograd.grad(work(given["logprob"]), given["logprob"])[0])


@pytest.mark.usefixtures("serve")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"logprob": torch.zeros(8).bfloat16()}, "logprob: expected float32 or float64, got .* bfloat16"),
        ({"logprob": torch.zeros(4, 2)}, r"logprob: expected \[T\], got \[4, 2\]"),
        ({"coefficient": torch.zeros(7)}, r"coefficient: expected \[8\] of torch.float32, got \[7\] float32"),
        ({"reference": torch.zeros(8).double()}, r"reference: expected \[8\] of torch.float32, got \[8\] float64"),
        ({"weight": torch.zeros(8, device="meta")}, "weight: expected a tensor on cpu, got meta"),
        ({"cu_seqlens": offsets([3, 5]).long()}, r"cu_seqlens: expected \[S \+ 1\] int32, got \[3\] int64"),
        ({"cu_seqlens": offsets([3, 5])[:0]}, r"cu_seqlens: expected \[S \+ 1\] int32, got \[0\] int32"),
        ({"tau": float("nan")}, "tau: expected at least 0, got nan"),
        ({"length": float("nan")}, "length: expected above 0, got nan"),
        ({"tau": -0.1}, "tau: expected at least 0, got -0.1"),
        ({"length": 0.0}, "length: expected above 0, got 0.0"),
        ({"cu_seqlens": offsets([3, 4])}, "cu_seqlens: expected values from 0 to 8, got 0 to 7"),
        ({"cu_seqlens": offsets([9, -1])}, "cu_seqlens: expected values that never fall"),
        ({"cu_seqlens": None}, r"segment: expected \[T\] int64, or cu_seqlens in its place"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], said: str) -> None:
    arguments = problem(8, torch.float32, "cpu") | {"cu_seqlens": offsets([3, 5])} | change
    with pytest.raises(ValueError, match=said):
        policy_gradient(**arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_what_does_not_fit_is_nan_on_a_gpu() -> None:
    given = problem(8, torch.float32, "cuda")
    found = policy_gradient(**given, cu_seqlens=torch.tensor([0, 9, 8], dtype=torch.int32, device="cuda"))
    assert found.loss.isnan()
    assert torch.autograd.grad(found.loss, given["logprob"])[0].isnan().all()

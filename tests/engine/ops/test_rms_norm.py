from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from engine.ops.rms_norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference

SHAPES = [(64, 576), (3, 40), (1, 1), (7, 17), (2, 3, 64), (0, 32)]
DTYPES = [torch.float32, torch.bfloat16]


def problem(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    hidden, update = torch.randn(2, *shape)
    return (3 * hidden).to(dtype), update.to(dtype), (torch.randn(shape[-1]) + 1).to(dtype)


def plain(implementation: str, hidden: Tensor, weight: Tensor) -> Tensor:
    op = rms_norm_reference if implementation == "reference" else rms_norm
    return op(hidden, weight, 1e-5)


def added(implementation: str, hidden: Tensor, update: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    op = add_rms_norm_reference if implementation == "reference" else add_rms_norm
    return op(hidden, update, weight, 1e-5)


def truth(hidden: Tensor, weight: Tensor) -> Tensor:
    norm = LlamaRMSNorm(weight.shape[0], 1e-5)
    norm.weight = torch.nn.Parameter(weight, requires_grad=False)
    result: Tensor = norm(hidden)
    return result


def assert_near(got: Tensor, expected: Tensor) -> None:
    """1e-6 apart in float32, neighbours in bfloat16: the order of the sum of squares is free."""
    assert got.dtype == expected.dtype
    if got.dtype == torch.float32:
        torch.testing.assert_close(got, expected, atol=0, rtol=1e-6)
        return
    got, expected = (x.contiguous().view(torch.int16).int() for x in (got, expected))
    got, expected = (torch.where(x < 0, -(x & 0x7FFF), x) for x in (got, expected))
    assert ((got - expected).abs() <= 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_transformers(implementation: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    hidden, _, weight = problem(shape, dtype)
    assert_near(plain(implementation, hidden, weight), truth(hidden, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_norms_the_rounded_sum(implementation: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    hidden, update, weight = problem(shape, dtype)
    total, normed = added(implementation, hidden, update, weight)
    assert torch.equal(total, hidden + update)
    assert_near(normed, truth(total, weight))
    assert torch.equal(normed, plain(implementation, total, weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_epsilon_carries_rows_of_zeros(implementation: str, dtype: torch.dtype) -> None:
    hidden = torch.zeros(2, 40, dtype=dtype)
    hidden[1, 0] = 1e-3
    weight = torch.ones(40, dtype=dtype)
    got = plain(implementation, hidden, weight)
    assert torch.equal(got[0], hidden[0])
    assert_near(got, truth(hidden, weight))


def test_nan_stays_in_its_row(implementation: str) -> None:
    hidden, _, weight = problem((3, 40), torch.bfloat16)
    hidden[1, 39] = float("nan")
    got = plain(implementation, hidden, weight)
    assert got.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_others(level: str, dtype: torch.dtype, two_threads: None) -> None:
    hidden, update, weight = problem((1300, 577), dtype)
    together = add_rms_norm(hidden, update, weight, 1e-5)
    torch.set_num_threads(1)
    for row in (0, 649, 650, 1299):
        one = slice(row, row + 1)
        alone = add_rms_norm(hidden[one], update[one], weight, 1e-5)
        for got, expected in zip(alone, together, strict=True):
            assert torch.equal(got[0], expected[row])


def test_strided_rows(implementation: str) -> None:
    hidden, update, weight = problem((6, 80), torch.float32)
    left, right = hidden[:, ::2], update[:, 40:]
    weight = weight[:40]
    got = plain(implementation, left, weight)
    assert got.is_contiguous()
    assert torch.equal(got, plain(implementation, left.contiguous(), weight))
    total, normed = added(implementation, left, right, weight)
    assert total.is_contiguous()
    assert torch.equal(normed, plain(implementation, left + right, weight))


def test_opcheck() -> None:
    hidden, update, weight = problem((3, 40), torch.float32)
    torch.library.opcheck(torch.ops.perilune.rms_norm.default, (hidden, weight, 1e-5))
    torch.library.opcheck(torch.ops.perilune.add_rms_norm.default, (hidden, update, weight, 1e-5))


@pytest.mark.parametrize(
    ("index", "value", "said"),
    [
        (0, torch.tensor(1.0), r"hidden: expected \[..., D\], got \[\] float32"),
        (0, torch.zeros(3, 0), r"hidden: expected \[..., D\], got \[3, 0\]"),
        (0, torch.zeros(3, 40).half(), "hidden: expected bfloat16 or float32, got .* float16"),
        (1, torch.zeros(3, 41), r"update: expected \[3, 40\] of torch.float32, got \[3, 41\]"),
        (1, torch.zeros(3, 40).bfloat16(), r"update: expected \[3, 40\] of torch.float32"),
        (2, torch.zeros(39), r"weight: expected \[40\] of torch.float32, got \[39\] float32"),
        (2, torch.zeros(40).bfloat16(), r"weight: expected \[40\] of torch.float32, got \[40\] bfloat16"),
    ],
)
def test_bad_input_is_named(index: int, value: Tensor, said: str) -> None:
    arguments = list(problem((3, 40), torch.float32))
    arguments[index] = value
    hidden, update, weight = arguments
    with pytest.raises(ValueError, match=said):
        add_rms_norm(hidden, update, weight, 1e-5)
    if index != 1:
        with pytest.raises(ValueError, match=said):
            rms_norm(hidden, weight, 1e-5)

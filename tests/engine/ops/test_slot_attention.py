from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.ops.packed_attention import packed_attention
from engine.ops.slot_attention import slot_attention, slot_attention_reference

DTYPES = [torch.bfloat16, torch.float32]


def problem(heads: int, shared: int, size: int, dtype: torch.dtype, tokens: int = 30) -> tuple[Tensor, ...]:
    slots, capacity = 3, 150
    query = torch.randn(tokens, heads, size).to(dtype)
    keys, values = torch.randn(2, slots, capacity, shared, size).to(dtype)
    slot = torch.randint(0, slots, (tokens,))
    position = torch.randint(-2, capacity, (tokens,))
    position[:4] = torch.tensor([0, 63, 64, 149])
    return query, keys, values, slot, position


def truth(
    query: Tensor, keys: Tensor, values: Tensor, slot: Tensor, position: Tensor, scale: float
) -> Tensor:
    group = query.shape[1] // keys.shape[2]
    rows = []
    for t, last in enumerate(position.tolist()):
        if last < 0:
            rows.append(torch.zeros(query.shape[1:], dtype=torch.float64))
            continue
        k, v = (
            c[slot[t], : last + 1].double().repeat_interleave(group, 1).transpose(0, 1)
            for c in (keys, values)
        )
        rows.append(scaled_dot_product_attention(query[t, :, None].double(), k, v, scale=scale)[:, 0])
    return torch.stack(rows)


def run(implementation: str, *arguments: Tensor | float) -> Tensor:
    return (slot_attention_reference if implementation == "reference" else slot_attention)(*arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "shared", "size"), [(9, 3, 64), (14, 2, 64), (4, 4, 40), (2, 1, 128), (5, 1, 192)]
)
def test_agrees_with_sdpa_in_float64(
    implementation: str, heads: int, shared: int, size: int, dtype: torch.dtype, poisoned: None
) -> None:
    arguments = problem(heads, shared, size, dtype)
    got = run(implementation, *arguments, size**-0.5)
    expected = truth(*arguments, size**-0.5)
    assert got.dtype == dtype
    bound = 1e-5 if dtype == torch.float32 else 2.0**-8
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=bound)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_plus_and_minus_200(implementation: str, dtype: torch.dtype, poisoned: None) -> None:
    """Far beyond what float32 has an exponential for: all far below zero, one far above, half of them."""
    query, keys, values, slot, position = problem(4, 2, 64, dtype)
    query.zero_()[..., 0] = 1
    far = torch.full((3, 150, 2), -200.0)
    far[1, 0] = 200
    far[2] = torch.where(torch.rand(150, 2) < 0.5, -200.0, 200.0)
    keys[..., 0] = far
    slot[:9], position[:9] = torch.arange(9) % 3, torch.tensor([149, 149, 149, 63, 64, 65, 1, 1, 1])
    got = run(implementation, query, keys, values, slot, position, 1.0)
    expected = truth(query, keys, values, slot, position, 1.0)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 2.0**-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_nan_is_not_hidden(implementation: str, where: str, dtype: torch.dtype) -> None:
    """It reaches those who read it, and leaves no trace with others."""
    query, keys, values, slot, position = problem(6, 2, 64, dtype)
    slot[:6], position[:6] = 1, torch.tensor([0, 19, 20, 63, 64, 149])
    clean = run(implementation, query, keys, values, slot, position, 0.125)
    touched = torch.zeros_like(clean, dtype=torch.bool)
    readers = (slot == 1) & (position >= 20)
    if where == "query":
        query[3, 1, 5] = float("nan")
        touched[3, 1] = True
    elif where == "key":
        keys[1, 20, 0, 5] = float("nan")
        touched[readers, :3] = True
    else:
        values[1, 20, 0, 5] = float("nan")
        touched[readers, :3, 5] = True
    got = run(implementation, query, keys, values, slot, position, 0.125)
    assert torch.equal(got.isnan(), touched)
    assert torch.equal(got[~touched], clean[~touched])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "shared", "size"), [(9, 3, 64), (5, 1, 192)])
def test_repeats_to_the_bit(
    implementation: str, heads: int, shared: int, size: int, dtype: torch.dtype, two_threads: None
) -> None:
    arguments = problem(heads, shared, size, dtype)
    first = run(implementation, *arguments, 0.125)
    for _ in range(3):
        assert torch.equal(run(implementation, *arguments, 0.125), first)


def test_negative_positions_give_zeros(implementation: str, poisoned: None) -> None:
    query, keys, values, slot, _ = problem(9, 3, 64, torch.bfloat16)
    got = run(implementation, query, keys, values, slot, torch.full((30,), -1), 0.125)
    assert torch.equal(got, torch.zeros_like(query))


def test_reads_nothing_past_the_position(implementation: str) -> None:
    query, keys, values, slot, position = problem(4, 2, 64, torch.float32)
    position.fill_(70)
    before = run(implementation, query, keys, values, slot, position, 0.125)
    keys[:, 71:] = float("nan")
    values[:, 71:] = float("nan")
    assert torch.equal(run(implementation, query, keys, values, slot, position, 0.125), before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_does_not_depend_on_the_others(level: str, dtype: torch.dtype, two_threads: None) -> None:
    query, keys, values, slot, position = problem(9, 3, 64, dtype)
    together = slot_attention(query, keys, values, slot, position, 0.125)
    torch.set_num_threads(1)
    for t in (0, 3, 29):
        one = slice(t, t + 1)
        alone = slot_attention(query[one], keys, values, slot[one], position[one], 0.125)
        assert torch.equal(alone[0], together[t])


def test_prefill_equals_packed_attention(implementation: str) -> None:
    query, keys, values, _, _ = problem(6, 2, 64, torch.float32, tokens=100)
    slot, position = torch.ones(100, dtype=torch.int64), torch.arange(100)
    got = run(implementation, query, keys, values, slot, position, 0.125)
    bounds = torch.tensor([0, 100], dtype=torch.int32)
    expected = packed_attention(query, keys[1, :100], values[1, :100], bounds, 0.125)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_strided_query_and_no_tokens(implementation: str) -> None:
    query, keys, values, slot, position = problem(9, 3, 64, torch.bfloat16)
    wide = torch.zeros(30, 15, 64, dtype=torch.bfloat16)
    wide[:, :9] = query
    got = run(implementation, wide[:, :9], keys, values, slot, position, 0.125)
    assert torch.equal(got, run(implementation, query, keys, values, slot, position, 0.125))
    nothing = torch.zeros(0, dtype=torch.int64)
    assert run(implementation, query[:0], keys, values, nothing, nothing, 0.125).shape == (0, 9, 64)


def test_opcheck() -> None:
    torch.library.opcheck(
        torch.ops.perilune.slot_attention.default, (*problem(4, 2, 32, torch.float32, 5), 0.2)
    )


@pytest.mark.parametrize(
    ("index", "value", "said"),
    [
        (0, torch.zeros(30, 9), r"query: expected \[F, H, d\], got \[30, 9\]"),
        (0, torch.zeros(30, 9, 64).double(), "query: expected bfloat16 or float32"),
        (1, torch.zeros(3, 150, 3, 32), r"key_cache: expected \[S, C, Hkv, 64\]"),
        (1, torch.zeros(3, 150, 2, 64), "key_cache: expected Hkv that divides 9 heads"),
        (2, torch.zeros(3, 151, 3, 64), r"value_cache: expected \[3, 150, 3, 64\]"),
        (3, torch.full((30,), 3), r"slot: expected values in 0\.\.2"),
        (
            4,
            torch.full((30,), 150),
            "position: expected values below 150, got 150|position: expected values in",
        ),
        (4, torch.zeros(30, dtype=torch.int32), r"position: expected \[30\] int64"),
    ],
)
def test_bad_input_is_named(index: int, value: Tensor, said: str) -> None:
    arguments = list(problem(9, 3, 64, torch.float32))
    arguments[index] = value
    with pytest.raises(ValueError, match=said):
        slot_attention(*arguments, 0.125)

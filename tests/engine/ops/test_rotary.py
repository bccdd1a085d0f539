from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from engine.ops.rotary import rotate_and_store, rotate_and_store_reference

DTYPES = [torch.float32, torch.bfloat16]
SLOTS, CAPACITY = 5, 50


def problem(heads: int, shared: int, size: int, dtype: torch.dtype, tokens: int = 30) -> tuple[Tensor, ...]:
    """Tokens at different places, every eleventh none; halves of a rotation differ, to tell them apart."""
    fused = torch.randn(tokens, heads + 2 * shared, size).to(dtype)
    cosine, sine = (torch.rand(2, CAPACITY + 3, 1, size) * 2 - 1).to(dtype)
    place = torch.randperm(SLOTS * CAPACITY)[:tokens]
    slot, position = place // CAPACITY, place % CAPACITY
    position[1::11] = -1
    keys, values = torch.randn(2, SLOTS, CAPACITY, shared, size).to(dtype)
    return fused, cosine, sine, slot, position, keys, values


def run(implementation: str, *arguments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    op = rotate_and_store_reference if implementation == "reference" else rotate_and_store
    copies = (*arguments[:5], arguments[5].clone(), arguments[6].clone())
    return op(*copies), copies[5], copies[6]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "shared", "size"), [(9, 3, 64), (4, 4, 40), (1, 1, 2), (5, 2, 6), (2, 1, 128)]
)
def test_equals_transformers(
    implementation: str, heads: int, shared: int, size: int, dtype: torch.dtype
) -> None:
    arguments = problem(heads, shared, size, dtype)
    fused, cosine, sine, slot, position, keys, values = arguments
    query, stored_keys, stored_values = run(implementation, *arguments)
    place = position.clamp(min=0)
    parts = fused.split([heads, shared, shared], dim=1)
    right, key = apply_rotary_pos_emb(*parts[:2], cosine[place, 0], sine[place, 0])
    assert torch.equal(query, right)
    for token in (position >= 0).nonzero().flatten().tolist():
        keys[slot[token], position[token]] = key[token]
        values[slot[token], position[token]] = parts[2][token]
    assert torch.equal(stored_keys, keys)
    assert torch.equal(stored_values, values)


def test_no_tokens_write_nothing(implementation: str) -> None:
    arguments = list(problem(4, 2, 32, torch.float32))
    arguments[4] = torch.full((30,), -1)
    _, keys, values = run(implementation, *arguments)
    assert torch.equal(keys, arguments[5])
    assert torch.equal(values, arguments[6])
    arguments = [argument[:0] if len(argument) == 30 else argument for argument in arguments]
    query, keys, values = run(implementation, *arguments)
    assert query.shape == (0, 4, 32)
    assert torch.equal(keys, arguments[5])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_does_not_depend_on_the_others(level: str, dtype: torch.dtype, two_threads: None) -> None:
    fused, cosine, sine, slot, position, keys, values = problem(30, 10, 64, dtype, tokens=200)
    copies = [keys.clone(), values.clone()]
    query = rotate_and_store(fused, cosine, sine, slot, position, *copies)
    torch.set_num_threads(1)
    for token in (0, 1, 99, 100, 199):
        one = slice(token, token + 1)
        alone = rotate_and_store(fused[one], cosine, sine, slot[one], position[one], keys, values)
        assert torch.equal(alone[0], query[token])
        if position[token] >= 0:
            where = (slot[token], position[token])
            assert torch.equal(keys[where], copies[0][where])
            assert torch.equal(values[where], copies[1][where])


def test_writes_into_a_layer_of_a_larger_cache(implementation: str) -> None:
    fused, cosine, sine, slot, position, keys, values = problem(4, 2, 32, torch.float32)
    op = rotate_and_store_reference if implementation == "reference" else rotate_and_store
    _, right_keys, right_values = run(implementation, fused, cosine, sine, slot, position, keys, values)
    layers = torch.stack([keys, keys]), torch.stack([values, values])
    wide = torch.zeros(30, 8, 64)
    wide[..., ::2] = fused
    op(wide[..., ::2], cosine, sine, slot, position, layers[0][1], layers[1][1])
    assert torch.equal(layers[0], torch.stack([keys, right_keys]))
    assert torch.equal(layers[1], torch.stack([values, right_values]))


def test_opcheck() -> None:
    torch.library.opcheck(
        torch.ops.perilune.rotate_and_store.default, problem(4, 2, 32, torch.float32, tokens=5)
    )


@pytest.mark.parametrize(
    ("index", "value", "said"),
    [
        (0, torch.zeros(30, 15), r"fused: expected \[F, H \+ 2 \* Hkv, even d\], got \[30, 15\]"),
        (0, torch.zeros(30, 15, 63), r"fused: expected \[F, H \+ 2 \* Hkv, even d\], got \[30, 15, 63\]"),
        (0, torch.zeros(30, 15, 64).half(), "fused: expected bfloat16 or float32"),
        (0, torch.zeros(30, 6, 64), r"fused: expected query heads and 2 \* 3 more, got \[30, 6, 64\]"),
        (1, torch.zeros(49, 1, 64), r"cosine: expected \[50 or more, 1, 64\] of torch.float32"),
        (1, torch.zeros(50, 1, 32), r"cosine: expected \[50 or more, 1, 64\] of torch.float32"),
        (2, torch.zeros(50, 1, 64), r"sine: expected \[53, 1, 64\] of torch.float32"),
        (3, torch.full((30,), 5), r"slot: expected values in 0\.\.4"),
        (3, torch.zeros(30), r"slot: expected \[30\] int64, got \[30\] float32"),
        (4, torch.full((30,), 50), r"position: expected values (below 50, got 50|in 0\.\.49)"),
        (4, torch.zeros(29, dtype=torch.int64), r"position: expected \[30\] int64, got \[29\] int64"),
        (5, torch.zeros(5, 50, 3, 32), r"key_cache: expected \[S, C, Hkv, 64\] of torch.float32"),
        (5, torch.zeros(5, 0, 3, 64), r"key_cache: expected \[S, C, Hkv, 64\] of torch.float32, C above"),
        (6, torch.zeros(5, 50, 3, 64).half(), r"value_cache: expected \[5, 50, 3, 64\] of torch.float32"),
        (6, torch.zeros(5, 3, 50, 64).transpose(1, 2), "value_cache: expected a contiguous tensor"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(index: int, value: Tensor, said: str) -> None:
    arguments = list(problem(9, 3, 64, torch.float32))
    arguments[index] = value
    keys, values = arguments[5].clone(), arguments[6].clone()
    with pytest.raises(ValueError, match=said):
        rotate_and_store(*arguments)
    assert torch.equal(arguments[5], keys)
    assert torch.equal(arguments[6], values)
